//! The ids that a process believes to have, and how the calls change them: the kernel's rules (credentials(7)), with
//! user 0 as the only one that may do everything.

use std::sync::Arc;

use rustix::io::{Errno, Result};

/// "Leave it as it is" in the calls.
pub(super) const KEEP: u32 = u32::MAX;

/// Real, effective, saved and file system id, of users or of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) real: u32,
    pub(super) effective: u32,
    pub(super) saved: u32,
    pub(super) files: u32,
}

impl Ids {
    const ROOT: Self = Self::all(0);

    const fn all(id: u32) -> Self {
        Self {
            real: id,
            effective: id,
            saved: id,
            files: id,
        }
    }

    fn has(self, id: u32) -> bool {
        [KEEP, self.real, self.effective, self.saved].contains(&id)
    }

    /// `setuid`, `setgid`.
    fn set(self, id: u32, privileged: bool) -> Result<Self> {
        if id == KEEP {
            return Err(Errno::INVAL);
        }
        if privileged {
            return Ok(Self::all(id));
        }
        if id != self.real && id != self.saved {
            return Err(Errno::PERM);
        }
        Ok(Self {
            effective: id,
            files: id,
            ..self
        })
    }

    /// `setreuid`, `setregid`.
    fn set_two(self, real: u32, effective: u32, privileged: bool) -> Result<Self> {
        let allowed = privileged
            || ([KEEP, self.real, self.effective].contains(&real) && self.has(effective));
        if !allowed {
            return Err(Errno::PERM);
        }
        let mut new = self;
        new.real = or(real, self.real);
        new.effective = or(effective, self.effective);
        if real != KEEP || (effective != KEEP && effective != self.real) {
            new.saved = new.effective;
        }
        new.files = new.effective;
        Ok(new)
    }

    /// `setresuid`, `setresgid`.
    fn set_three(self, [real, effective, saved]: [u32; 3], privileged: bool) -> Result<Self> {
        let known = [real, effective, saved].iter().all(|id| self.has(*id));
        if !privileged && !known {
            return Err(Errno::PERM);
        }
        let effective = or(effective, self.effective);
        Ok(Self {
            real: or(real, self.real),
            effective,
            saved: or(saved, self.saved),
            files: effective,
        })
    }

    /// `setfsuid`, `setfsgid`, which never fail.
    fn set_files(self, id: u32, privileged: bool) -> Self {
        let allowed = id != KEEP && (privileged || self.has(id) || id == self.files);
        Self {
            files: if allowed { id } else { self.files },
            ..self
        }
    }
}

fn or(id: u32, otherwise: u32) -> u32 {
    if id == KEEP { otherwise } else { id }
}

/// A change that a process asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    One(u32),
    Two(u32, u32),
    Three([u32; 3]),
    Files(u32),
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) users: Ids,
    pub(super) groups: Ids,
    pub(super) others: Arc<[u32]>,
    /// The set-id program (by device and inode) that brought these about; it does so once only.
    pub(super) program: Option<(u64, u64)>,
    /// Asked to keep its rights when it becomes another user.
    pub(super) keeps_rights: bool,
    /// The program (by device and inode) that has kept them.
    pub(super) kept: Option<(u64, u64)>,
}

impl Credentials {
    pub(super) fn root() -> Self {
        Self {
            users: Ids::ROOT,
            groups: Ids::ROOT,
            others: Arc::new([]),
            program: None,
            keeps_rights: false,
            kept: None,
        }
    }

    pub(super) fn privileged(&self) -> bool {
        self.users.effective == 0 || self.kept.is_some()
    }

    pub(super) fn in_group(&self, id: u32) -> bool {
        self.groups.files == id || self.others.contains(&id)
    }

    pub(super) fn change_users(&mut self, change: &Change) -> Result<()> {
        self.users = apply(self.users, change, self.privileged())?;
        Ok(())
    }

    pub(super) fn change_groups(&mut self, change: &Change) -> Result<()> {
        self.groups = apply(self.groups, change, self.privileged())?;
        Ok(())
    }

    /// `setgroups`.
    pub(super) fn set_others(&mut self, groups: Vec<u32>) -> Result<()> {
        if !self.privileged() {
            return Err(Errno::PERM);
        }
        self.others = groups.into();
        Ok(())
    }

    /// What executing a program with set-id bits does.
    pub(super) fn execute(&mut self, program: (u64, u64), user: Option<u32>, group: Option<u32>) {
        self.program = Some(program);
        for (ids, id) in [(&mut self.users, user), (&mut self.groups, group)] {
            if let Some(id) = id {
                (ids.effective, ids.saved, ids.files) = (id, id, id);
            }
        }
    }
}

fn apply(ids: Ids, change: &Change, privileged: bool) -> Result<Ids> {
    match *change {
        Change::One(id) => ids.set(id, privileged),
        Change::Two(real, effective) => ids.set_two(real, effective, privileged),
        Change::Three(three) => ids.set_three(three, privileged),
        Change::Files(id) => Ok(ids.set_files(id, privileged)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(steps: &[Change]) -> std::result::Result<[u32; 4], (usize, Errno)> {
        let mut credentials = Credentials::root();
        for (at, step) in steps.iter().enumerate() {
            credentials
                .change_users(step)
                .map_err(|error| (at, error))?;
        }
        let ids = credentials.users;
        Ok([ids.real, ids.effective, ids.saved, ids.files])
    }

    #[test]
    fn users_change_as_the_kernel_says() {
        use Change::{Files, One, Three, Two};
        assert_eq!(user(&[One(5)]), Ok([5, 5, 5, 5]));
        assert_eq!(user(&[One(KEEP)]), Err((0, Errno::INVAL)));
        assert_eq!(
            user(&[One(5), One(0)]),
            Err((1, Errno::PERM)),
            "no way back"
        );
        assert_eq!(user(&[One(5), One(5)]), Ok([5, 5, 5, 5]));
        assert_eq!(user(&[Three([KEEP, 5, KEEP])]), Ok([0, 5, 0, 5]));
        assert_eq!(user(&[Three([KEEP, 5, KEEP]), One(0)]), Ok([0, 0, 0, 0]));
        assert_eq!(user(&[Three([5, 5, 0]), One(0)]), Ok([5, 0, 0, 0]));
        assert_eq!(user(&[Three([5, 5, 0]), One(7)]), Err((1, Errno::PERM)));
        assert_eq!(
            user(&[Three([5, 6, 7]), Three([7, 5, 6])]),
            Ok([7, 5, 6, 5])
        );
        assert_eq!(
            user(&[Three([5, 6, 7]), Three([7, 8, 6])]),
            Err((1, Errno::PERM))
        );
        assert_eq!(user(&[Two(5, 6)]), Ok([5, 6, 6, 6]));
        assert_eq!(user(&[Two(KEEP, 6)]), Ok([0, 6, 6, 6]));
        assert_eq!(user(&[Two(KEEP, 0)]), Ok([0, 0, 0, 0]));
        assert_eq!(
            user(&[Three([5, 6, 7]), Two(7, KEEP)]),
            Err((1, Errno::PERM))
        );
        assert_eq!(user(&[Three([5, 6, 7]), Two(6, 7)]), Ok([6, 7, 7, 7]));
        assert_eq!(user(&[Files(9)]), Ok([0, 0, 0, 9]));
        assert_eq!(
            user(&[One(5), Files(9)]),
            Ok([5, 5, 5, 5]),
            "never an error"
        );
    }

    #[test]
    fn groups_follow_the_user() {
        let mut credentials = Credentials::root();
        credentials.set_others(vec![1, 2]).unwrap();
        credentials.change_groups(&Change::One(5)).unwrap();
        credentials.change_users(&Change::One(5)).unwrap();
        assert_eq!(credentials.change_groups(&Change::One(0)), Err(Errno::PERM));
        assert_eq!(credentials.set_others(vec![]), Err(Errno::PERM));
        assert!(credentials.in_group(5) && credentials.in_group(2) && !credentials.in_group(0));
        credentials.execute((1, 1), Some(0), None);
        assert_eq!(credentials.users.real, 5);
        credentials.change_users(&Change::One(0)).unwrap();
        assert_eq!(credentials.users, Ids::ROOT);
    }
}
