//! Platforms on the command line, and what names lead to where there are several.

use anyhow::Result;
use kiln_engine::BuildError;
use kiln_image::{Digest, Platform, Reference};
use kiln_store::{Store, StoredIndex};

/// A platform; this machine's if none is given.
pub(super) fn platform(text: Option<&str>) -> Result<Platform> {
    match text {
        None | Some("local") => Ok(Platform::host()),
        Some(text) => text
            .parse()
            .map_err(|error| BuildError::new(format!("--platform: {error}")).into()),
    }
}

/// A list of platforms, each once.
pub(super) fn platforms(list: &[String]) -> Result<Vec<Platform>> {
    let mut platforms = Vec::new();
    for text in list {
        let platform = platform(Some(text.trim()))?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// An image or an index by name or id.
pub(super) fn find_target(store: &Store, text: &str) -> Result<Digest> {
    if let Ok(name) = text.parse::<Reference>() {
        let digest = match name.digest() {
            Some(digest) => Some(digest),
            None => store.resolve(&name)?,
        };
        if let Some(digest) = digest {
            if store.image(digest)?.is_some() {
                return Ok(digest);
            }
            if store.index(digest)?.is_some() {
                return Ok(digest);
            }
            if let Some(image) = store.images_of_repo_digest(digest)?.first() {
                return Ok(*image);
            }
        }
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let mut found = Vec::new();
    if digits.len() >= 4
        && digits
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        found = store.find_images(digits)?;
        let indexes = store.indexes()?.into_iter().map(|index| index.digest);
        found.extend(indexes.filter(|digest| digest.hex().starts_with(digits)));
    }
    match found[..] {
        [digest] => Ok(digest),
        [] => Err(BuildError::new(format!("no such image: {text}"))
            .with_hint("see kiln images")
            .into()),
        _ => Err(BuildError::new(format!(
            "several images have an id that begins with {digits}"
        ))
        .with_hint("give more digits")
        .into()),
    }
}

/// An image by name or id; of several platforms the one for this machine.
pub(super) fn find_image(store: &Store, text: &str) -> Result<Digest> {
    find_image_for(store, text, None)
}

/// An image by name or id, for a platform if one is given.
pub(super) fn find_image_for(
    store: &Store,
    text: &str,
    platform: Option<&Platform>,
) -> Result<Digest> {
    let target = find_target(store, text)?;
    let host = Platform::host();
    let (has, chosen) = match store.index(target)? {
        Some(index) => {
            let chosen = index.select(platform.unwrap_or(&host));
            let chosen = chosen.map(|image| image.manifest);
            // An image that does not run here can still be looked at.
            let only = match (&index.images[..], platform) {
                ([only], None) => Some(only.manifest),
                _ => None,
            };
            (platforms_of(&index), chosen.or(only))
        }
        None => match (store.image(target)?, platform) {
            (Some(image), Some(platform)) => {
                let its = image.info.platform.normalised();
                let fits = platform.runs().contains(&its);
                (vec![its], fits.then_some(target))
            }
            _ => (Vec::new(), Some(target)),
        },
    };
    chosen.ok_or_else(|| {
        let has: Vec<_> = has.iter().map(Platform::to_string).collect();
        let wanted = platform.unwrap_or(&host);
        BuildError::new(format!(
            "{text}: no image for {wanted} in the store: it has {}",
            has.join(", ")
        ))
        .with_hint(format!(
            "choose one of them with --platform, or kiln pull --platform {wanted} {text}"
        ))
        .into()
    })
}

/// The platforms of which the store has an image.
pub(super) fn platforms_of(index: &StoredIndex) -> Vec<Platform> {
    let entries = index.document.manifests.iter();
    let there = entries.filter(|entry| index.images.iter().any(|it| it.manifest == entry.digest));
    there.filter_map(|entry| entry.platform.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let parse = |list: &[&str]| -> Result<Vec<String>> {
            let list: Vec<_> = list.iter().map(|text| (*text).to_owned()).collect();
            let platforms = platforms(&list)?;
            Ok(platforms.iter().map(ToString::to_string).collect())
        };
        assert_eq!(
            parse(&["linux/amd64", " linux/arm/v7", "linux/x86_64", "linux/arm"]).unwrap(),
            ["linux/amd64", "linux/arm/v7"]
        );
        assert_eq!(parse(&["local"]).unwrap(), [Platform::host().to_string()]);
        let error = parse(&["linux"]).unwrap_err().to_string();
        assert!(
            error.starts_with("--platform: invalid platform \"linux\""),
            "{error}"
        );
    }
}
