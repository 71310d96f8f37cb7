//! `--chmod`.

use crate::FileOpError;

/// A mode to be set, or a change of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chmod {
    /// These bits, whatever they were.
    Octal(u16),
    /// As in `u=rwX,go=rX`.
    Symbolic(Vec<Change>),
}

/// What one `+`, `-` or `=` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Bits of the classes that are named: `0o700`, `0o070`, `0o007`.
    who: u16,
    op: Op,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Take,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Permissions of each class (`0o7` at most), `X`, `s`, `t`.
    Bits {
        rwx: u16,
        exec_if_any: bool,
        set_id: bool,
        sticky: bool,
    },
    /// The permissions that a class has: its shift.
    Copy(u16),
}

const SETUID: u16 = 0o4000;
const SETGID: u16 = 0o2000;
const STICKY: u16 = 0o1000;

impl Chmod {
    pub(crate) fn parse(text: &str) -> Result<Self, FileOpError> {
        let bad = || FileOpError::Mode {
            mode: text.to_owned(),
        };
        if text.starts_with(|char: char| char.is_ascii_digit()) {
            return match u16::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o7777 => Ok(Self::Octal(mode)),
                _ => Err(bad()),
            };
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let classes = clause.find(['+', '-', '=']).ok_or_else(bad)?;
            let mut who = 0;
            for class in clause[..classes].chars() {
                who |= match class {
                    'u' => 0o700,
                    'g' => 0o070,
                    'o' => 0o007,
                    'a' => 0o777,
                    _ => return Err(bad()),
                };
            }
            let who = if who == 0 { 0o777 } else { who };
            let mut rest = &clause[classes..];
            while let Some(op) = rest.chars().next() {
                let op = match op {
                    '+' => Op::Add,
                    '-' => Op::Take,
                    _ => Op::Set,
                };
                let end = rest[1..]
                    .find(['+', '-', '='])
                    .map_or(rest.len(), |end| end + 1);
                changes.push(Change {
                    who,
                    op,
                    what: what(&rest[1..end]).ok_or_else(bad)?,
                });
                rest = &rest[end..];
            }
        }
        Ok(Self::Symbolic(changes))
    }

    /// The mode of something that had the mode `before`.
    pub(crate) fn apply(&self, before: u16, is_dir: bool) -> u16 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(changes) => changes
                .iter()
                .fold(before, |mode, change| change.apply(mode, before, is_dir)),
        }
    }

    /// The mode of a folder that is made on the way to a destination. Symbolic modes do not count for it, nor do the
    /// special bits and what a umask of 022 takes away, as in BuildKit.
    pub(crate) fn of_parents(&self) -> Option<u16> {
        match self {
            Self::Octal(mode) => Some(mode & 0o755),
            Self::Symbolic(_) => None,
        }
    }
}

fn what(text: &str) -> Option<What> {
    let copy = match text {
        "u" => Some(6),
        "g" => Some(3),
        "o" => Some(0),
        _ => None,
    };
    if let Some(shift) = copy {
        return Some(What::Copy(shift));
    }
    let (mut rwx, mut exec_if_any, mut set_id, mut sticky) = (0, false, false, false);
    for char in text.chars() {
        match char {
            'r' => rwx |= 4,
            'w' => rwx |= 2,
            'x' => rwx |= 1,
            'X' => exec_if_any = true,
            's' => set_id = true,
            't' => sticky = true,
            _ => return None,
        }
    }
    Some(What::Bits {
        rwx,
        exec_if_any,
        set_id,
        sticky,
    })
}

impl Change {
    /// `before` is the mode that the whole list of changes began with: `X` asks it.
    fn apply(&self, mode: u16, before: u16, is_dir: bool) -> u16 {
        let (rwx, special) = match self.what {
            What::Copy(shift) => (mode >> shift & 7, None),
            What::Bits {
                rwx,
                exec_if_any,
                set_id,
                sticky,
            } => {
                let exec = exec_if_any && (is_dir || before & 0o111 != 0);
                let mut special = 0;
                if set_id && self.who & 0o700 != 0 {
                    special |= SETUID;
                }
                if set_id && self.who & 0o070 != 0 {
                    special |= SETGID;
                }
                // Sticky belongs to no class, but naming only the others does not set it.
                if sticky && self.who & 0o770 != 0 {
                    special |= STICKY;
                }
                (rwx | u16::from(exec), Some(special))
            }
        };
        let bits = ((rwx * 0o111) & self.who) | special.unwrap_or(0);
        match self.op {
            Op::Add => mode | bits,
            Op::Take => mode & !bits,
            Op::Set => {
                let mut cleared = self.who;
                if special.is_some() {
                    cleared |= if self.who & 0o700 != 0 { SETUID } else { 0 };
                    cleared |= if self.who & 0o070 != 0 { SETGID } else { 0 };
                }
                mode & !cleared | bits
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        // mode, file 4751, file 640, folder 2710; what BuildKit 0.25 made of them.
        let cases = [
            ("755", 0o755, 0o755, 0o755),
            ("4711", 0o4711, 0o4711, 0o4711),
            ("0", 0, 0, 0),
            ("+x", 0o4751, 0o751, 0o2711),
            ("=r", 0o444, 0o444, 0o444),
            ("a-w", 0o4551, 0o440, 0o2510),
            ("go=u", 0o4777, 0o666, 0o2777),
            ("u=rwX,go=rX", 0o755, 0o644, 0o755),
            ("a=X", 0o111, 0, 0o111),
            ("g=u+x", 0o4771, 0o670, 0o2770),
            ("u+s,g+s", 0o6751, 0o6640, 0o6710),
            ("+t", 0o5751, 0o1640, 0o3710),
            ("o+t", 0o4751, 0o640, 0o2710),
            ("u-rwx,g=,o=x", 0o4001, 0o001, 0o001),
            ("u=g,g+w-x", 0o4561, 0o460, 0o2120),
            ("ugo+rwxst", 0o7777, 0o7777, 0o7777),
            ("a+rX,u-s", 0o755, 0o644, 0o2755),
            ("a-x,a+X", 0o4751, 0o640, 0o2711),
            ("=", 0, 0, 0),
            ("u+", 0o4751, 0o640, 0o2710),
        ];
        for (text, executable, plain, folder) in cases {
            let chmod = Chmod::parse(text).unwrap();
            let modes = [
                chmod.apply(0o4751, false),
                chmod.apply(0o640, false),
                chmod.apply(0o2710, true),
            ];
            assert_eq!(modes, [executable, plain, folder], "{text}: {modes:?}");
        }
        for bad in [
            "8", "99", "10000", "u", "q=r", "u+q", "u+1", "u=rw,", "", "0x1", "u=ug",
        ] {
            assert!(
                matches!(Chmod::parse(bad), Err(FileOpError::Mode { .. })),
                "{bad}"
            );
        }
        assert_eq!(Chmod::parse("4711").unwrap().of_parents(), Some(0o711));
        assert_eq!(Chmod::parse("a-w").unwrap().of_parents(), None);
    }
}
