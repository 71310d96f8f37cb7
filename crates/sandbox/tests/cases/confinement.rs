//! What a program may not do.

use kiln_sandbox::{Confinement, Exit};

use super::{Privilege, Root, output, run};

pub(super) fn filter(_: Privilege) {
    let root = Root::new();
    // Namespaces, mounts, keys and reboot are out of reach, the machine's clock too.
    let (_, text) = run(root.sh(
        "unshare -U true; unshare -m true; mount -t tmpfs x /tmp; chroot / true && echo chroot; hostname other; \
         umount /proc; date -s 2000-01-01",
    )).unwrap();
    assert!(text.contains("chroot\n"), "{text}");
    assert!(
        text.matches("Operation not permitted").count() + text.matches("permission denied").count()
            >= 5,
        "{text}"
    );
    assert!(!text.contains("Invalid"), "{text}");
}

/// A program for i386: the code lies at 0x08048088, behind five bytes of text at 0x08048080.
pub(super) fn i386(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    // Entry, program headers at 0x34, no sections, flags; then sizes, and one program header.
    for word in [0x0804_8088u32, 0x34, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0x34u16, 0x20, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let size = (0x88 + code.len()) as u32;
    for word in [1, 0, 0x0804_8000, 0x0804_8000, size, size, 5, 0x1000] {
        file.extend(u32::to_le_bytes(word));
    }
    file.resize(0x80, 0);
    file.extend(b"i386\n\0\0\0");
    file.extend(code);
    file
}

/// 32-bit programs run, under the same rules.
pub(super) fn thirty_two_bit(_: Privilege) {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("skipped: needs x86-64");
        return;
    }
    #[rustfmt::skip]
    let code: &[u8] = &[
        0xb8, 4, 0, 0, 0,                   // mov eax, 4 (write)
        0xbb, 1, 0, 0, 0,                   // mov ebx, 1
        0xb9, 0x80, 0x80, 0x04, 0x08,       // mov ecx, text
        0xba, 5, 0, 0, 0,                   // mov edx, 5
        0xcd, 0x80,                         // int 0x80
        0xb8, 21, 0, 0, 0,                  // mov eax, 21 (mount), all arguments null
        0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2, // xor ebx, ebx; ecx; edx
        0xcd, 0x80,                         // int 0x80
        0x89, 0xc3, 0xf7, 0xdb,             // mov ebx, eax; neg ebx
        0xb8, 1, 0, 0, 0,                   // mov eax, 1 (exit)
        0xcd, 0x80,                         // int 0x80
    ];
    let root = Root::new();
    root.program("small", &i386(code), 0o755);
    match run(root.process(&["small"])) {
        Ok(outcome) => assert_eq!(outcome, (Exit::Code(1 /* EPERM */), "i386\n".into())),
        Err(error) => eprintln!("skipped: this kernel runs no 32-bit programs ({error})"),
    }
}

pub(super) fn insecure(privilege: Privilege) {
    let root = Root::new();
    let mut process = root.sh(
        "mount -t tmpfs x /tmp && mount | grep -c ' /tmp '; grep -E 'Seccomp:' /proc/self/status; unshare -m true; echo $?",
    );
    process.confinement = Confinement::Insecure;
    // Where ids are recorded there is still the filter that asks.
    let filters = if privilege == Privilege::Single { 2 } else { 0 };
    assert_eq!(output(process), format!("1\nSeccomp:\t{filters}\n0\n"));
}

pub(super) fn binary_is_read_only(_: Privilege) {
    // The worker's own file, seen through /proc, must not be writable; in `direct` mode there is no worker.
    let worker = std::env::args().nth(1).as_deref() == Some("worker");
    if !worker {
        return;
    }
    let flags = rustix::fs::statvfs("/proc/self/exe").unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
}
