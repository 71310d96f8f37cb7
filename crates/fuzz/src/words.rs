//! Small texts: platforms, addresses of repositories, recorded owners, mounts, settings of the checks.

use kiln_dockerfile::{CheckSettings, Mount};
use kiln_frontend::{Options, git_context};
use kiln_graph::SourceOp;
use kiln_image::{OwnerRecord, Platform};

/// What was read and printed is read as the same; nothing panics.
pub(crate) fn words(data: &[u8]) {
    if let Some(record) = OwnerRecord::decode(data) {
        let again = OwnerRecord::decode(record.encode().as_bytes());
        assert_eq!(again, Some(record));
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse(), Ok(platform.clone()));
        let normal = platform.normalised();
        assert_eq!(normal.clone().normalised(), normal);
        assert!(normal.runs().contains(&normal));
    }
    let options = Options::new(Platform::new("linux", "amd64", ""));
    let address = |text: &str| match git_context(text, &options) {
        Ok(SourceOp::Git { url, .. }) => Some(url),
        _ => None,
    };
    if let Some(url) = address(&text) {
        assert_eq!(address(&url), Some(url));
    }
    // Errors are fine.
    let _ = Mount::parse(&text, &mut |value| Ok(value.to_owned()));
    let _ = CheckSettings::parse(&text);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "linux/arm/v7",
        "linux/amd64",
        "windows(10.0)/amd64",
        "https://u@h/r.git?ref=main&subdir=a%2Fb#",
        "git@h:r.git#v1:folder",
        "3:4",
        "0:0:0755",
        "type=cache,target=/c,id=x,sharing=locked,uid=1,mode=0700",
        "type=bind,from=a,source=/s,target=t,rw",
        "skip=StageNameCasing,all;error=true;experimental=all",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}
