//! The colours of rows.

/// What a row's colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Normal,
    Finished,
    Canceled,
    Failed,
    Warning,
    /// Output of a step, which is not Kiln's own words.
    Output,
}

/// Which colours the live screen uses. The default is none at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Colors(Option<Palette>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Palette {
    finished: String,
    canceled: String,
    failed: String,
    warning: String,
}

impl Colors {
    /// Takes the values of `NO_COLOR` and `BUILDKIT_COLORS`.
    ///
    /// A `NO_COLOR` that is not empty means none (no-color.org). The other is a list like
    /// `run=light-blue:cancel=255,165,0:error=red:warning=yellow`; what is missing or not understood keeps its default.
    pub fn from_settings(no_color: Option<&str>, buildkit_colors: Option<&str>) -> Self {
        if no_color.is_some_and(|value| !value.is_empty()) {
            return Self(None);
        }
        let mut palette = Palette {
            finished: "34".to_owned(),
            canceled: "33".to_owned(),
            failed: "31".to_owned(),
            warning: "33".to_owned(),
        };
        for field in buildkit_colors.unwrap_or_default().split(':') {
            let Some((name, color)) = field.split_once('=') else {
                continue;
            };
            let place = match name.trim().to_ascii_lowercase().as_str() {
                "run" => &mut palette.finished,
                "cancel" => &mut palette.canceled,
                "error" => &mut palette.failed,
                "warning" => &mut palette.warning,
                _ => continue,
            };
            if let Some(code) = code(color.trim()) {
                *place = code;
            }
        }
        Self(Some(palette))
    }

    /// Writes a text in the colour of a tone.
    pub(crate) fn paint(&self, tone: Tone, text: &str, out: &mut Vec<u8>) {
        let code = self.0.as_ref().and_then(|palette| match tone {
            Tone::Normal => None,
            Tone::Finished => Some(palette.finished.as_str()),
            Tone::Canceled => Some(palette.canceled.as_str()),
            Tone::Failed => Some(palette.failed.as_str()),
            Tone::Warning => Some(palette.warning.as_str()),
            Tone::Output => Some("2"),
        });
        if let Some(code) = code {
            out.extend_from_slice(format!("\x1b[{code}m{text}\x1b[0m").as_bytes());
        } else {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// The parameters of "select graphic rendition" (ECMA-48, 8.3.117) for a colour's name or `red,green,blue`.
fn code(color: &str) -> Option<String> {
    const NAMES: [&str; 8] = [
        "black", "red", "green", "yellow", "blue", "magenta", "cyan", "white",
    ];
    let color = color.to_ascii_lowercase();
    let number = |name: &str| NAMES.iter().position(|known| *known == name);
    if let Some(number) = number(&color) {
        return Some((30 + number).to_string());
    }
    if let Some(number) = color.strip_prefix("light-").and_then(number) {
        return Some((90 + number).to_string());
    }
    let parts = color
        .split(',')
        .map(|part| part.trim().parse::<u8>().ok())
        .collect::<Option<Vec<_>>>()?;
    match parts[..] {
        [red, green, blue] => Some(format!("38;2;{red};{green};{blue}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn painted(colors: &Colors, tone: Tone) -> String {
        let mut out = Vec::new();
        colors.paint(tone, "x", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn settings() {
        let default = Colors::from_settings(None, None);
        assert_eq!(painted(&default, Tone::Finished), "\x1b[34mx\x1b[0m");
        assert_eq!(painted(&default, Tone::Normal), "x");
        assert_eq!(Colors::from_settings(Some(""), Some("")), default);
        assert_eq!(
            Colors::from_settings(None, Some("run=mauve:nonsense:error=1,2:cancel=1,2,300")),
            default
        );

        let own = Colors::from_settings(None, Some("run=light-blue:Cancel=255,165,0:warning=cyan"));
        assert_eq!(painted(&own, Tone::Finished), "\x1b[94mx\x1b[0m");
        assert_eq!(
            painted(&own, Tone::Canceled),
            "\x1b[38;2;255;165;0mx\x1b[0m"
        );
        assert_eq!(painted(&own, Tone::Failed), "\x1b[31mx\x1b[0m");
        assert_eq!(painted(&own, Tone::Warning), "\x1b[36mx\x1b[0m");

        let none = Colors::from_settings(Some("1"), Some("run=red"));
        assert_eq!(painted(&none, Tone::Finished), "x");
    }
}
