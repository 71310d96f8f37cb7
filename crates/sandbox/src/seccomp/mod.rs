//! The system call filter: what Docker's default profile does with the default capabilities.
//!
//! The profile is a list of allowed calls; turned around it is a range of known numbers less some sixty calls, which
//! makes a filter of seven steps instead of hundreds, and the same table serves 32-bit programs. A call newer than the
//! range gets `ENOSYS`, so that programs take their older way; a forbidden one gets `EPERM`.

mod table;

use table::{NEWEST, Table};

/// One instruction of classic BPF.
pub(crate) type Instruction = libc::sock_filter;

/// What happens with a call that is not simply allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It fails with this error.
    Fail(i32),
    /// Allowed without flags that make namespaces, in its first argument.
    NoNamespaces,
    /// Allowed for all families but `AF_VSOCK`.
    NoVsock,
    /// Allowed for the harmless personalities: Linux, 32-bit, and `uname` telling of Linux 2.6.
    HarmlessPersonality,
    /// Answered by the supervisor.
    Ask,
    /// Answered by the supervisor if the argument (counted from 0) has any of the bits, else allowed.
    AskIfAny { argument: u32, bits: u32 },
    /// Answered by the supervisor if the first argument is this, else allowed.
    AskIfFirst(u32),
}

/// `CLONE_NEWNS`, `NEWCGROUP`, `NEWUTS`, `NEWIPC`, `NEWUSER`, `NEWPID`, `NEWNET`.
const NAMESPACES: u32 = 0x7e02_0000;
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

// Offsets in `struct seccomp_data`; the low half of an argument comes first on all our machines.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// The filter for this machine.
pub(crate) fn filter() -> Vec<Instruction> {
    let native = block(&table::NATIVE);
    let mut program = vec![
        load(ARCHITECTURE),
        jump(EQUAL, table::NATIVE.architecture, 0, native.len()),
    ];
    program.extend(native);
    let compat = block(&table::COMPAT);
    program.push(jump(EQUAL, table::COMPAT.architecture, 0, compat.len()));
    program.extend(compat);
    program.push(fail(libc::ENOSYS));
    program
}

/// A filter that leaves the calls of the tables (`AUDIT_ARCH_*`, rules) to the supervisor, and allows all others.
pub(crate) fn questions(tables: &[(u32, Vec<(u32, Rule)>)]) -> Vec<Instruction> {
    let mut program = vec![load(ARCHITECTURE)];
    for (architecture, rules) in tables {
        let mut rules = rules.clone();
        rules.sort_by_key(|&(number, _)| number);
        let mut block = vec![load(NUMBER)];
        search(&rules, &mut block);
        program.push(jump(EQUAL, *architecture, 0, block.len()));
        program.extend(block);
    }
    program.push(allow());
    program
}

fn block(table: &Table) -> Vec<Instruction> {
    let mut rules = table.rules.to_vec();
    rules.extend(
        table::NEW
            .iter()
            .map(|&number| (number, Rule::Fail(libc::ENOSYS))),
    );
    rules.sort_by_key(|&(number, _)| number);
    let mut program = vec![load(NUMBER)];
    // Calls beyond the range: the few private ones of the architecture, else unknown.
    let (first, last) = table.private;
    program.push(jump(AT_LEAST, NEWEST + 1, 0, 4));
    program.push(jump(AT_LEAST, first, 0, 2));
    program.push(jump(AT_LEAST, last + 1, 1, 0));
    program.push(allow());
    program.push(fail(libc::ENOSYS));
    search(&rules, &mut program);
    program
}

/// Finds the rule of the loaded number by halving.
fn search(rules: &[(u32, Rule)], program: &mut Vec<Instruction>) {
    if rules.len() <= 3 {
        for (number, rule) in rules {
            let code = code(*rule);
            program.push(jump(EQUAL, *number, 0, code.len()));
            program.extend(code);
        }
        program.push(allow());
        return;
    }
    let (low, high) = rules.split_at(rules.len() / 2);
    let mut left = Vec::new();
    search(low, &mut left);
    program.push(jump(AT_LEAST, high[0].0, left.len(), 0));
    program.extend(left);
    search(high, program);
}

/// Decides; never falls through.
fn code(rule: Rule) -> Vec<Instruction> {
    match rule {
        Rule::Fail(error) => vec![fail(error)],
        Rule::NoNamespaces => {
            vec![
                load(FIRST_ARGUMENT),
                jump(ANY_BIT, NAMESPACES, 1, 0),
                allow(),
                fail(libc::EPERM),
            ]
        }
        Rule::NoVsock => {
            vec![
                load(FIRST_ARGUMENT),
                jump(EQUAL, libc::AF_VSOCK as u32, 1, 0),
                allow(),
                fail(libc::EPERM),
            ]
        }
        Rule::HarmlessPersonality => {
            let mut program = vec![load(FIRST_ARGUMENT)];
            for (done, value) in PERSONALITIES.iter().enumerate() {
                program.push(jump(EQUAL, *value, PERSONALITIES.len() - done, 0));
            }
            program.push(fail(libc::EPERM));
            program.push(allow());
            program
        }
        Rule::Ask => vec![ask()],
        Rule::AskIfFirst(value) => {
            vec![
                load(FIRST_ARGUMENT),
                jump(EQUAL, value, 0, 1),
                ask(),
                allow(),
            ]
        }
        Rule::AskIfAny { argument, bits } => {
            vec![
                load(FIRST_ARGUMENT + 8 * argument),
                jump(ANY_BIT, bits, 0, 1),
                ask(),
                allow(),
            ]
        }
    }
}

fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD as u16,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

/// Jumps are relative to the next instruction.
fn jump(kind: u32, value: u32, yes: usize, no: usize) -> Instruction {
    let short = |distance: usize| {
        u8::try_from(distance).expect("the tables are small enough for short jumps")
    };
    Instruction {
        code: kind as u16,
        jt: short(yes),
        jf: short(no),
        k: value,
    }
}

fn allow() -> Instruction {
    Instruction {
        code: RETURN as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }
}

fn ask() -> Instruction {
    Instruction {
        code: RETURN as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_USER_NOTIF,
    }
}

fn fail(error: i32) -> Instruction {
    Instruction {
        code: RETURN as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ERRNO | error as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers.
    fn run(
        program: &[Instruction],
        architecture: u32,
        number: u32,
        argument: u32,
    ) -> Result<(), i32> {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            let mut go = |yes: bool| at += 1 + usize::from(if yes { step.jt } else { step.jf });
            match u32::from(step.code) {
                LOAD => {
                    value = match step.k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        FIRST_ARGUMENT => argument,
                        other => panic!("load from {other}"),
                    };
                    at += 1;
                }
                EQUAL => go(value == step.k),
                AT_LEAST => go(value >= step.k),
                ANY_BIT => go(value & step.k != 0),
                RETURN if step.k == libc::SECCOMP_RET_ALLOW => return Ok(()),
                RETURN => return Err((step.k & libc::SECCOMP_RET_DATA) as i32),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn every_number_gets_its_rule() {
        let program = filter();
        assert!(program.len() < 4096);
        for table in [&table::NATIVE, &table::COMPAT] {
            for number in 0..2000 {
                let rule = table
                    .rules
                    .iter()
                    .find(|(denied, _)| *denied == number)
                    .map(|(_, rule)| *rule);
                let answer = |argument| run(&program, table.architecture, number, argument);
                match rule {
                    None if number > NEWEST => assert_eq!(answer(0), Err(libc::ENOSYS), "{number}"),
                    None if table::NEW.contains(&number) => {
                        assert_eq!(answer(0), Err(libc::ENOSYS), "{number}");
                    }
                    None => assert_eq!(answer(0), Ok(()), "{number}"),
                    Some(Rule::Fail(error)) => assert_eq!(answer(0), Err(error), "{number}"),
                    Some(Rule::NoNamespaces) => {
                        assert_eq!(answer(libc::SIGCHLD as u32 | libc::CLONE_VM as u32), Ok(()));
                        for flag in [
                            libc::CLONE_NEWUSER,
                            libc::CLONE_NEWNS,
                            libc::CLONE_NEWCGROUP,
                        ] {
                            assert_eq!(
                                answer(flag as u32 | libc::CLONE_VM as u32),
                                Err(libc::EPERM)
                            );
                        }
                    }
                    Some(Rule::NoVsock) => {
                        assert_eq!(answer(libc::AF_UNIX as u32), Ok(()));
                        assert_eq!(answer(libc::AF_VSOCK as u32), Err(libc::EPERM));
                    }
                    Some(Rule::Ask | Rule::AskIfAny { .. } | Rule::AskIfFirst(_)) => {
                        panic!("{number}: nobody answers")
                    }
                    Some(Rule::HarmlessPersonality) => {
                        for value in PERSONALITIES {
                            assert_eq!(answer(value), Ok(()));
                        }
                        assert_eq!(answer(0x004_0000), Err(libc::EPERM));
                    }
                }
            }
        }
        assert_eq!(
            run(&program, table::NATIVE.architecture, 0x4000_0000, 0),
            Err(libc::ENOSYS)
        );
        assert_eq!(run(&program, 0x1234, 0, 0), Err(libc::ENOSYS));
    }
}
