//! A local user without rights, whose program is named as a server's: what the agent does about it must not cost others their answers.

#![cfg(test)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use musttls_tests::agent::{Agent, Home};
use musttls_tests::fuse::Slow;
use musttls_tests::netns::Net;
use musttls_tests::place::{Killed, Scratch, of_user_in};
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, Product};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{LoginPacket, REFUSED};

const ENFORCE: &str = "mode = \"enforce\"";
/// How long the agent may take to look at a process.
const A_LOOK: Duration = Duration::from_secs(3);

/// A user of this host; it needs no name.
const LOCAL: u32 = 54_321;

/// A program that is named as a server's.
struct Fake {
    _process: Killed,
    port: u16,
    _directory: Scratch,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn program(directory: &Scratch) -> PathBuf {
    let program = directory.join("mysqld");
    fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
    program
}

impl Fake {
    fn start(port: u16, stdin: Stdio) -> Self {
        let directory = Scratch::new().unwrap();
        let file = directory.join("heard");
        let child = Command::new(program(&directory))
            .args([port.to_string(), file.display().to_string()])
            .stdin(stdin)
            .spawn()
            .unwrap();
        let fake = Self {
            _process: Killed(child),
            port,
            _directory: directory,
        };
        wait::until_true("the scripted server", PATIENCE, || Ok(file.exists())).unwrap();
        fake
    }

    /// A plaintext login, sent.
    fn login(&self) -> Raw {
        let mut raw = Raw::connect_here((Ipv4Addr::LOCALHOST, self.port).into()).unwrap();
        raw.greeting().unwrap();
        raw.send(&LoginPacket::new("anybody").packet_41()).unwrap();
        raw
    }
}

/// To find a session's socket, the agent duplicates descriptors of its server and closes them. Whoever closes a file of a file system in
/// user space waits for its owner, and cannot be killed.
#[test]
fn file_that_cannot_be_closed_keeps_nobody_from_being_told() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let port = free_port();
    let policy = format!("{ENFORCE}\n[[server]]\nname = \"fake\"\nports = [{port}]\n");
    let agent = Agent::start(&policy).unwrap();
    let slow = Slow::new().unwrap();
    let fake = Fake::start(port, File::open(slow.file()).unwrap().into());
    wait::until_true("the agent to see both", PATIENCE, || {
        let text = agent.status()?.to_string();
        Ok(text.contains(&format!(":{port}\"")))
    })
    .unwrap();
    let holding = slow.hold();
    let _own = fake.login();
    std::thread::sleep(wait::here(A_LOOK));

    let answer = site.plaintext().unwrap().receive().unwrap();
    let error = answer.error().map(|error| error.number);
    assert_eq!(error, Some(REFUSED), "{answer:?}; held: {}", holding.held());
    assert_eq!(holding.held(), 0);
}

/// The kernel keeps a socket locked while it copies what is sent, and a page of what is sent may never come. Nobody else can ask the
/// socket anything meanwhile, nor be killed who waits for it (`lock_sock`).
#[test]
#[ignore = "fails: one thread refuses for all servers, and waits with one"]
fn socket_that_stays_locked_keeps_nobody_from_being_told() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let port = free_port();
    let policy = format!("{ENFORCE}\n[[server]]\nname = \"fake\"\nports = [{port}]\n");
    let agent = Agent::start(&policy).unwrap();
    let slow = Slow::new().unwrap();
    let directory = Scratch::new().unwrap();
    let program = directory.join("mysqld");
    fs::copy(fs::canonicalize("/usr/bin/python3").unwrap(), &program).unwrap();
    let script = format!(
        "import mmap, os, socket\n\
         f = os.open({:?}, os.O_RDONLY)\n\
         page = mmap.mmap(f, 4096, mmap.MAP_SHARED, mmap.PROT_READ)\n\
         s = socket.create_server(('127.0.0.1', {port}))\n\
         c, _ = s.accept()\n\
         g = b'\\x0a8.4.0\\0\\x2a\\0\\0\\0ABCDEFGH\\0\\xff\\xff\\xff\\x02\\0\\xff\\xdf\\x15' + bytes(10) + b'IJKLMNOPQRST\\0caching_sha2_password\\0'\n\
         c.sendall(bytes([len(g), 0, 0, 0]) + g)\n\
         c.sendall(page)\n",
        slow.file(),
    );
    let child = Command::new(program).args(["-c", &script]).spawn();
    let _fake = Killed(child.unwrap());
    wait::until_true("the agent to see both", PATIENCE, || {
        let text = agent.status()?.to_string();
        Ok(text.contains(&format!(":{port}\"")))
    })
    .unwrap();
    let holding = slow.hold();
    let mut own = Raw::connect_here((Ipv4Addr::LOCALHOST, port).into()).unwrap();
    own.greeting().unwrap();
    wait::until_true("the socket to be locked", PATIENCE, || {
        Ok(holding.held() == 1)
    })
    .unwrap();
    own.send(&LoginPacket::new("anybody").packet_41()).unwrap();
    std::thread::sleep(wait::here(A_LOOK));

    let answer = site.plaintext().unwrap().receive().unwrap();
    let error = answer.error().map(|error| error.number);
    assert_eq!(error, Some(REFUSED), "{answer:?}");
}

/// A process in the middle of `execve(2)`, which does not come to its end: nobody else gets at its memory or its descriptors meanwhile
/// (`exec_update_lock`).
#[test]
#[ignore = "fails: looks are made in the event loop, which waits with them"]
fn program_that_never_begins_does_not_hold_up_the_agent() {
    let slow = Slow::new().unwrap();
    let directory = Scratch::new().unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let holding = slow.hold();
    // What Python opens is closed by execve(2).
    let script = format!(
        "import os; os.open({:?}, os.O_RDONLY); os.execv({:?}, [\"mysqld\"])",
        slow.file(),
        program(&directory)
    );
    let child = Command::new("python3").args(["-c", &script]).spawn();
    let _hanging = Killed(child.unwrap());
    // Let go before that is waited for.
    let holding = holding;
    wait::until_true("the program to hang", PATIENCE, || Ok(holding.held() == 1)).unwrap();
    std::thread::sleep(wait::here(A_LOOK));

    let before = Instant::now();
    let status = agent.status();
    assert!(status.is_ok() && before.elapsed() < PATIENCE, "{status:?}");
}

/// A look reads what the kernel lists of a network namespace once, not once for each program that is named as a server's.
#[test]
fn many_programs_beside_many_connections_do_not_hold_up_the_agent() {
    const PROGRAMS: usize = 150;
    const CONNECTIONS: u16 = 20_000;
    let net = Net::new().unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let directory = Scratch::new().unwrap();
    let program = directory.join("mysqld");
    fs::copy("/bin/sleep", &program).unwrap();
    let _programs: Vec<Killed> = net
        .app
        .run(|| {
            // Each leaves a line for a minute.
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            for number in 0..CONNECTIONS {
                let to = Ipv4Addr::new(127, 0, 0, u8::try_from(1 + number % 4).unwrap());
                let client = TcpStream::connect((to, port)).unwrap();
                let (server, _) = listener.accept().unwrap();
                drop((client, server));
            }
            let start = |_| {
                // Whoever has no socket is not looked for in the lists.
                let (socket, _) = UnixStream::pair().unwrap();
                let mut command = Command::new(&program);
                let child = command.arg("600").stdin(OwnedFd::from(socket)).spawn();
                Killed(child.unwrap())
            };
            (0..PROGRAMS).map(start).collect()
        })
        .unwrap();
    let servers = || agent.status().map(|status| status["servers"].clone());
    wait::until_true("the agent to see them", PATIENCE * 3, || {
        Ok(servers()?.to_string().matches("\"mysqld\"").count() >= PROGRAMS)
    })
    .unwrap();
    // A whole look.
    let began = Instant::now();
    let output = agent.musttls(&["reload"]).unwrap();
    let took = began.elapsed();
    assert!(output.status.success(), "{output:?}");
    assert!(took < wait::here(Duration::from_secs(1)), "{took:?}");
}

/// Members of the group may ask. They must not take the descriptors that refusals need, nor keep root from asking.
#[test]
fn members_of_the_group_take_no_more_than_their_part_of_the_control_socket() {
    const GROUP: u32 = 0;
    let home = Home::new().unwrap();
    home.configure(ENFORCE).unwrap();
    let text = fs::read_to_string(home.config()).unwrap();
    let text = text.replace("[control]", "[control]\ngroup = \"root\"");
    fs::write(home.config(), text).unwrap();
    let agent = Agent::start_in(home).unwrap();
    let descriptors = || {
        let all = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
        all.count()
    };
    let before = descriptors();
    // They say nothing.
    let script = format!(
        "import os, socket, time\nall = []\nfor _ in range(400):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect({:?})\n    all.append(s)\n\
         time.sleep(60)",
        agent.home().control(),
    );
    let mut command = of_user_in(LOCAL, GROUP);
    let child = command.args(["/usr/bin/python3", "-c", &script]).spawn();
    let _member = Killed(child.unwrap());
    wait::until_true("the member to ask", PATIENCE, || {
        Ok(descriptors() > before + 16)
    })
    .unwrap();
    std::thread::sleep(wait::here(Duration::from_secs(1)));
    let during = descriptors();
    assert!(during <= before + 40, "{before}, then {during}");
    let began = Instant::now();
    agent.status().unwrap();
    assert!(began.elapsed() < wait::here(Duration::from_secs(2)));
}
