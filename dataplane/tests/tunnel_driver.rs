//! What happens where io_uring is denied: a seccomp filter like that of a container runtime, around the real program.

#![allow(unsafe_code)] // installs the filter between fork and exec
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // helpers of tests

mod tunnel_support;

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use tunnel_support::*;

/// Has the program's `io_uring_setup` fail with `errno`.
fn deny_io_uring(command: &mut Command, errno: i32) -> &mut Command {
    let errno = u32::try_from(errno).unwrap();
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let filter = [
        // The number of the call is the first word of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, setup, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let install = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: plain system calls; the program and its filter live until both have returned.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: `install` only makes system calls, which is allowed between fork and exec; it allocates nothing.
    unsafe { command.pre_exec(install) }
}

fn server(files: &Files, listen: &str, driver: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(["tunnel", "server", "--workers", "1", "--listen", listen, "--driver", driver, "--cert"]);
    command.arg(&files.cert).arg("--key").arg(&files.key).arg("--ca").arg(&files.ca).env("NO_COLOR", "1");
    command
}

#[test]
fn asked_for_io_uring_the_program_says_why_not_in_three_lines() {
    let pki = Pki::new();
    let files = pki.issue("server", SERVER);
    for errno in [libc::EPERM, libc::ENOSYS] {
        let mut command = server(&files, &address().to_string(), "io_uring");
        command.args(["--allow", CLIENT]);
        let Output { status, stderr, .. } = deny_io_uring(&mut command, errno).output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 3, "{said}");
        for part in ["io_uring_setup", "seccomp", "--driver epoll"] {
            assert!(said.contains(part), "{part:?} is missing in {said}");
        }
    }
}

#[test]
fn left_to_itself_the_program_warns_and_works_on_epoll() {
    let pki = Pki::new();
    let (server_files, client_files) = (pki.issue("server", SERVER), pki.issue("client", CLIENT));
    let (server_at, at, application) = (address().to_string(), address(), echo().to_string());
    let mut denied =
        Process::start("server", deny_io_uring(&mut server(&server_files, &server_at, "auto"), libc::EPERM));
    denied.wait_for("falling back to epoll");
    assert!(denied.wait_for("listening").contains("driver=epoll"));
    let listen = at.to_string();
    let arguments =
        ["--listen", &listen, "--peer", &server_at, "--authority", &application, "--peer-identity", SERVER];
    let _client = start("client", &client_files, &arguments);
    let mut stream = dial(at);
    stream.write_all(b"without a ring").unwrap();
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"without a ring");
}
