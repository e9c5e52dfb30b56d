//! Programs that are started: what they say, how they end, and what they leave behind.

use smelt_schemas::ExitCode;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// After its program has ended a pipe is read until it is empty, but no further than this: a process that was left
/// behind may write into it for ever. No pipe holds more.
const LAST_WORDS: usize = 1 << 20;

/// Makes the process that `command` starts end when this one ends, for any reason.
pub(crate) fn end_with_me(command: &mut Command) {
    let me = std::process::id() as i32;
    // SAFETY: the closure makes plain system calls only; the second look closes the gap before the first.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            match libc::getppid() == me {
                true => Ok(()),
                false => Err(std::io::ErrorKind::BrokenPipe.into()),
            }
        });
    }
}

/// Gives the lines of both pipes of `child` to `out` and `err`, until `wait` says that it has ended. A process that the
/// child left behind may hold the pipes open: that delays nothing.
pub(crate) fn listen<T>(
    child: &mut Child,
    out: impl FnMut(&str) + Send,
    err: impl FnMut(&str) + Send,
    wait: impl FnOnce(&mut Child) -> T,
) -> T {
    let ended = AtomicBool::new(false);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(|| lines(stdout, &ended, out));
        scope.spawn(|| lines(stderr, &ended, err));
        let result = wait(child);
        ended.store(true, Ordering::SeqCst);
        result
    })
}

/// Starts `command`, hands it `input`, and collects what it says until it has ended.
pub(crate) fn ask(command: &mut Command, input: &[u8]) -> std::io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take();
    let ended = AtomicBool::new(false);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let out = scope.spawn(|| bytes(stdout, &ended));
        let err = scope.spawn(|| bytes(stderr, &ended));
        scope.spawn(move || {
            // A program that does not read its input says why in its own words.
            drop(stdin.map(|pipe| write_and_end(pipe, input)));
        });
        let status = child.wait();
        ended.store(true, Ordering::SeqCst);
        let said = |pipe: std::thread::ScopedJoinHandle<'_, Vec<u8>>| pipe.join().unwrap_or_default();
        Ok(Output { status: status?, stdout: said(out), stderr: said(err) })
    })
}

/// Writes into the pipe of a program that may have ended, and closes it.
pub(crate) fn give(pipe: ChildStdin, input: &[u8]) -> std::io::Result<()> {
    std::thread::scope(|scope| scope.spawn(move || write_and_end(pipe, input)).join().expect("writing panics nowhere"))
}

/// The same, on a thread that ends then. `smelt` is to end by SIGPIPE when nobody reads its own output, and not when a
/// program that it started has ended without reading: on this thread the signal is blocked.
fn write_and_end(mut pipe: ChildStdin, input: &[u8]) -> std::io::Result<()> {
    // SAFETY: the calls only write into a set of signals, for which all zeros are a valid value.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
    }
    std::io::Write::write_all(&mut pipe, input)
}

fn bytes(pipe: Option<impl Read + AsRawFd>, ended: &AtomicBool) -> Vec<u8> {
    let mut all = Vec::new();
    pieces(pipe, ended, |piece| all.extend_from_slice(piece));
    all
}

/// Lines of a pipe; bytes that are not UTF-8 are replaced.
fn lines(pipe: Option<impl Read + AsRawFd>, ended: &AtomicBool, mut take: impl FnMut(&str)) {
    let mut tell = |line: &[u8]| take(String::from_utf8_lossy(line).trim_end_matches('\r'));
    let mut open = Vec::new();
    pieces(pipe, ended, |mut piece| {
        while let Some(end) = piece.iter().position(|b| *b == b'\n') {
            open.extend_from_slice(&piece[..end]);
            tell(&open);
            open.clear();
            piece = &piece[end + 1..];
        }
        open.extend_from_slice(piece);
    });
    if !open.is_empty() {
        tell(&open);
    }
}

fn pieces(pipe: Option<impl Read + AsRawFd>, ended: &AtomicBool, mut take: impl FnMut(&[u8])) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 1 << 16];
    let mut after_end = 0;
    loop {
        // Whether it has ended is asked before whether there is more: what it wrote last is not lost.
        let is_over = ended.load(Ordering::SeqCst);
        let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor that is open for as long as `pipe` lives.
        let ready = unsafe { libc::poll(&mut poll, 1, if is_over { 0 } else { 20 }) };
        match ready {
            0 if is_over => return,
            1.. if after_end > LAST_WORDS => return,
            1.. => match pipe.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    after_end += if is_over { n } else { 0 };
                    take(&buffer[..n]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            },
            _ => {}
        }
    }
}

/// Ends what is left of the process group of a program that has ended; false if nothing was.
pub(crate) fn end_group(group: u32) -> bool {
    // SAFETY: signals a group whose number the ended leader had; while members are left, nobody else can have it.
    unsafe { libc::kill(-(group as i32), libc::SIGKILL) == 0 }
}

/// How a process ended, for people: `it ended with exit status 7`, `it was killed by SIGKILL`.
pub(crate) fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("it was killed by {}", signal_name(signal)),
        (None, Some(code)) => format!("it ended with exit status {code}"),
        (None, None) => format!("it ended with {status}"),
    }
}

/// What to do about a signal that nobody here sent.
pub(crate) fn hint(status: ExitStatus) -> Option<&'static str> {
    Some(match status.signal()? {
        libc::SIGKILL => {
            "was memory short? The kernel kills what takes too much (`dmesg | grep -i oom` says so); give the job \
             less to do at once, or the machine or container more memory"
        }
        libc::SIGBUS => "is the disk, or the shared memory of the container, full?",
        libc::SIGILL => "was it built for another processor? `cargo build --release` on this machine",
        libc::SIGTERM | libc::SIGINT | libc::SIGHUP => "somebody ended it; the same command goes on from there",
        libc::SIGXCPU | libc::SIGXFSZ => "it met a limit of the shell: `ulimit -a` shows them",
        _ => return None,
    })
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => return format!("signal {signal}"),
    };
    name.into()
}

/// What the end of a process asks for.
pub(crate) fn code(status: ExitStatus) -> ExitCode {
    ExitCode::of_process(status.code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn shell(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn a_process_left_behind_delays_nobody_and_what_was_said_is_whole() {
        let begun = Instant::now();
        let answer = ask(&mut shell("sleep 30 & echo $!; cat; printf 'a\\nb'; exit 3"), b"input\n").unwrap();
        let said = String::from_utf8(answer.stdout).unwrap();
        let (left, rest) = said.split_once('\n').unwrap();
        assert_eq!((rest, answer.status.code()), ("input\na\nb", Some(3)));
        // One that goes on writing, too.
        let mut chatty = shell("(while true; do echo more; sleep 0.01; done) & echo $! >&2; echo done");
        let mut child = chatty.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let tell = |to: &mut Vec<String>, line: &str| to.push(line.to_owned());
        let status =
            listen(&mut child, |line| tell(&mut out, line), |line| tell(&mut err, line), |child| child.wait()).unwrap();
        assert!(status.success() && out.iter().any(|line| line == "done") && err.len() == 1, "{out:?} {err:?}");
        assert!(begun.elapsed() < Duration::from_secs(15));
        assert!(end_group(child.id()), "somebody was left");
        let left: i32 = left.parse().unwrap();
        // SAFETY: a process that this test started, through the shell.
        unsafe { libc::kill(left, libc::SIGKILL) };
    }

    #[test]
    fn an_end_is_told_by_the_name_of_its_signal() {
        let ended = |text: &str| ask(&mut shell(text), b"").unwrap().status;
        assert_eq!(how(ended("kill -KILL $$")), "it was killed by SIGKILL");
        assert!(hint(ended("kill -KILL $$")).unwrap().contains("memory"));
        assert_eq!(how(ended("kill -SEGV $$")), "it was killed by SIGSEGV");
        assert_eq!((how(ended("exit 7")), hint(ended("exit 7"))), ("it ended with exit status 7".into(), None));
        assert_eq!(how(ExitStatus::from_raw(60)), "it was killed by signal 60");
    }
}
