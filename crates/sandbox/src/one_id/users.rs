//! Questions about the ids of processes.

use std::ffi::CString;

use kiln_image::OwnerRecord;
use rustix::fs::{AtFlags, CWD, Mode, statat};
use rustix::io::{Errno, Result};

use super::calls::Call;
use super::credentials::{Change, Credentials, Ids};
use super::listener::{Answer, Question, mark, read, write};
use super::{State, argument, files, word};

/// Most supplementary groups (`NGROUPS_MAX`).
const MOST_GROUPS: u32 = 65536;

impl State {
    /// Answers if the call is one of these.
    pub(super) fn about_users(
        &mut self,
        question: &Question,
        call: Call,
    ) -> Result<Option<Answer>> {
        let three = |at: usize| [0, 1, 2].map(|number| word(question, at + number));
        let change = match call {
            Call::SetUser | Call::SetGroup => Change::One(word(question, 0)),
            Call::SetTwoUsers | Call::SetTwoGroups => {
                Change::Two(word(question, 0), word(question, 1))
            }
            Call::SetThreeUsers | Call::SetThreeGroups => Change::Three(three(0)),
            Call::SetFilesUser | Call::SetFilesGroup => Change::Files(word(question, 0)),
            Call::SetOthers => return self.set_others(question).map(Some),
            Call::KeepRights => {
                let before = self.current(question)?;
                let mut after = before.clone();
                after.keeps_rights = word(question, 1) != 0;
                self.mark_as(question, &before, after)?;
                return Ok(Some(Answer::Continue));
            }
            _ => return self.tell(question, call),
        };
        let before = self.current(question)?;
        let mut after = before.clone();
        let of_users = matches!(
            call,
            Call::SetUser | Call::SetTwoUsers | Call::SetThreeUsers | Call::SetFilesUser
        );
        let previous = if of_users {
            after.change_users(&change)?;
            if before.privileged() && after.keeps_rights && after.users.effective != 0 {
                after.kept = program(question).map(|(program, _)| program);
            }
            before.users.files
        } else {
            after.change_groups(&change)?;
            before.groups.files
        };
        self.mark_as(question, &before, after)?;
        // Only these tell what was before.
        let told = matches!(change, Change::Files(_));
        Ok(Some(Answer::Value(if told { previous.into() } else { 0 })))
    }

    fn tell(&mut self, question: &Question, call: Call) -> Result<Option<Answer>> {
        let asks = matches!(
            call,
            Call::GetUser
                | Call::GetEffectiveUser
                | Call::GetGroup
                | Call::GetEffectiveGroup
                | Call::GetUsers
                | Call::GetGroups
                | Call::GetOthers
        );
        if !asks {
            return Ok(None);
        }
        let now = self.current(question)?;
        let put_three = |ids: Ids| {
            for (number, id) in [ids.real, ids.effective, ids.saved].iter().enumerate() {
                write(question, argument(question, number), &id.to_ne_bytes())?;
            }
            Ok(Answer::Value(0))
        };
        let value = |id: u32| Ok(Answer::Value(id.into()));
        match call {
            Call::GetUser => value(now.users.real),
            Call::GetEffectiveUser => value(now.users.effective),
            Call::GetGroup => value(now.groups.real),
            Call::GetEffectiveGroup => value(now.groups.effective),
            Call::GetUsers => put_three(now.users),
            Call::GetGroups => put_three(now.groups),
            _ => get_others(question, &now),
        }
        .map(Some)
    }

    fn set_others(&mut self, question: &Question) -> Result<Answer> {
        let count = word(question, 0);
        if count > MOST_GROUPS {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; 4 * count as usize];
        if count > 0 {
            read(question, argument(question, 1), &mut bytes)?;
        }
        let groups = bytes.chunks_exact(4);
        let groups = groups.map(|id| u32::from_ne_bytes([id[0], id[1], id[2], id[3]]));
        let before = self.current(question)?;
        let mut after = before.clone();
        after.set_others(groups.collect())?;
        self.mark_as(question, &before, after)?;
        Ok(Answer::Value(0))
    }

    /// Who the asking process is.
    pub(super) fn current(&mut self, question: &Question) -> Result<Credentials> {
        let mark = mark(question, None)?;
        let Some(known) = self.credentials.get(&mark) else {
            // The first process, which has whatever limit the user has; or one that changed the limit.
            return Ok(Credentials::root());
        };
        if known.users.effective == 0 {
            return Ok(known.clone());
        }
        let before = known.clone();
        let mut after = before.clone();
        if let Some((program, mode)) = program(question) {
            if before
                .kept
                .is_some_and(|kept| kept != program || !may_set_ids(question))
            {
                after.kept = None;
            }
            if self.set_id_programs {
                execute(&mut after, question, program, mode);
            }
        }
        self.mark_as(question, &before, after.clone())?;
        Ok(after)
    }

    /// Marks the asking process with new credentials.
    fn mark_as(
        &mut self,
        question: &Question,
        before: &Credentials,
        after: Credentials,
    ) -> Result<()> {
        if *before == after {
            return Ok(());
        }
        let lowest = match self.mark {
            Some(lowest) => lowest,
            None => mark(question, None)?,
        };
        let next = lowest.checked_sub(1).ok_or(Errno::AGAIN)?;
        mark(question, Some(next))?;
        self.mark = Some(next);
        self.credentials.insert(next, after);
        Ok(())
    }
}

/// The program that the asking process runs: device and inode, and mode.
fn program(question: &Question) -> Option<((u64, u64), Mode)> {
    let stat = statat(CWD, executable(question), AtFlags::empty()).ok()?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    Some(((stat.st_dev, stat.st_ino), mode))
}

fn executable(question: &Question) -> String {
    format!("{}/exe", question.pid)
}

/// Executing is not stopped; that a process runs a program with set-id bits is seen when it first asks.
fn execute(now: &mut Credentials, question: &Question, program: (u64, u64), mode: Mode) {
    if now.program == Some(program) || !mode.intersects(Mode::SUID | Mode::SGID) {
        return;
    }
    let path = CString::new(executable(question)).unwrap_or_default();
    let owner = files::attribute(&path, true).unwrap_or(OwnerRecord::file(0, 0));
    // Without the right to execute for its group the bit means locking.
    let group = mode.contains(Mode::SGID | Mode::XGRP);
    let user = mode.contains(Mode::SUID);
    now.execute(
        program,
        user.then_some(owner.uid),
        group.then_some(owner.gid),
    );
}

/// Whether the asking process has not given up `CAP_SETGID` and `CAP_SETUID`, the real ones.
fn may_set_ids(question: &Question) -> bool {
    const EITHER: u64 = 1 << 6 | 1 << 7;
    let status = std::fs::read_to_string(format!("{}/status", question.pid)).unwrap_or_default();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    rights
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .is_some_and(|rights| rights & EITHER != 0)
}

fn get_others(question: &Question, now: &Credentials) -> Result<Answer> {
    let (room, count) = (word(question, 0) as usize, now.others.len());
    if room == 0 {
        return Ok(Answer::Value(count as i64));
    }
    if room < count {
        return Err(Errno::INVAL);
    }
    let bytes: Vec<u8> = now.others.iter().flat_map(|id| id.to_ne_bytes()).collect();
    if count > 0 {
        write(question, argument(question, 1), &bytes)?;
    }
    Ok(Answer::Value(count as i64))
}
