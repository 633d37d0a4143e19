//! The service through a tap, as programs in a guest see it. The guest's TCP is the kernel's.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddrV4, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::IMDS_MAC;
use imds_tests::{
    client::{PATIENCE, exchange, get, text, token, wait_for},
    host::{ADDRESS, Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    records::{self, ROLE, USER_DATA},
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind,
            connect as connect_to, recv, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

fn connect() -> TcpStream {
    let stream = TcpStream::connect_timeout(&"169.254.169.254:80".parse().unwrap(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn run(guest: &KernelGuest, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = guest.command(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.ends_with("_proxy"))
    {
        command.env_remove(name);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(arguments)
        .output()
        .with_context(|| format!("no {program}"))?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(
        status.success(),
        "{program} {arguments:?} failed: {status}\n{stderr}"
    );
    Ok(String::from_utf8(stdout)?)
}

#[test]
fn a_guest_gets_token_identity_and_role_credentials() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    guest.namespace.enter(|| {
        let token = token()?;
        assert_eq!(token.len(), 56);
        assert_eq!(text(&token, "meta-data/instance-id")?, INSTANCE_ID);
        assert_eq!(text(&token, "meta-data/placement/region")?, "eu-central-1");
        assert_eq!(text(&token, "meta-data/tags/instance/team")?, "blue");
        assert_eq!(text(&token, "user-data")?, USER_DATA);
        let roles = "meta-data/iam/security-credentials/";
        assert_eq!(text(&token, roles)?, ROLE);
        let ask = || get(&token, &format!("{roles}{ROLE}"));
        let (credentials, _) = wait_for("the first set", ask, |response| response.status == 200)?;
        let credentials: serde_json::Value = serde_json::from_slice(&credentials.body)?;
        assert_eq!(credentials["Code"], "Success");
        assert!(credentials["AccessKeyId"].as_str().unwrap().starts_with("ASIA"));
        Ok(())
    })
}

#[test]
fn who_brings_no_token_or_a_wrong_one_is_refused() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    guest.namespace.enter(|| {
        assert_eq!(exchange("GET /latest/meta-data/ HTTP/1.1\r\n\r\n")?.status, 401);
        let mut wrong = token()?.into_bytes();
        wrong[20] = if wrong[20] == b'A' { b'B' } else { b'A' };
        let wrong = String::from_utf8(wrong)?;
        assert_eq!(get(&wrong, "meta-data/")?.status, 401);
        Ok(())
    })
}

#[test]
fn a_token_is_good_for_its_own_instance_only() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    // The other tenant uses the same IP address.
    let other = host.add_guest("tap1", records::guest_mac(3), "10.0.0.2/24")?;
    let mut record = records::instance("i-0fedcba9876543210", records::guest_mac(3), "tap1", "10.0.0.2");
    record["UserData"] = "b3RoZXI=".into();
    host.files.put("instances", "other", &record)?;
    let token_of_one = guest.namespace.enter(token)?;
    other.namespace.enter(|| {
        let own = token()?;
        assert_eq!(text(&own, "meta-data/instance-id")?, "i-0fedcba9876543210");
        assert_eq!(text(&own, "user-data")?, "other");
        assert_eq!(get(&token_of_one, "meta-data/instance-id")?.status, 401);
        Ok(())
    })
}

#[test]
fn a_request_may_come_in_pieces_and_end_in_a_half_close() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    guest.namespace.enter(|| {
        let token = token()?;
        let mut stream = connect();
        stream.set_nodelay(true).unwrap();
        let request = format!("GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
        for byte in request.as_bytes() {
            stream.write_all(&[*byte]).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        assert!(response.ends_with(&format!("\r\n\r\n{USER_DATA}")), "{response}");
        Ok(())
    })
}

#[test]
fn one_kept_alive_connection_serves_many_requests() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    guest.namespace.enter(|| {
        let mut stream = connect();
        let ask = |stream: &mut TcpStream, request: &str| {
            stream.write_all(request.as_bytes()).unwrap();
            let mut response = Vec::new();
            let mut piece = [0; 4096];
            loop {
                let count = stream.read(&mut piece).unwrap();
                assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&response));
                response.extend_from_slice(&piece[..count]);
                let text = String::from_utf8_lossy(&response);
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
                    if body.len() == length.parse::<usize>().unwrap() {
                        return body.to_owned();
                    }
                }
            }
        };
        let put = "PUT /latest/api/token HTTP/1.1\r\nConnection: keep-alive\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
        let token = ask(&mut stream, put);
        for _ in 0..300 {
            let request = format!(
                "GET /latest/meta-data/instance-id HTTP/1.1\r\nConnection: keep-alive\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
            );
            assert_eq!(ask(&mut stream, &request), INSTANCE_ID);
        }
    });
    Ok(())
}

/// A connection from one certain port of the guest.
fn connect_from(port: u16) -> Result<TcpStream> {
    let (inet, stream) = (AddressFamily::Inet, SockType::Stream);
    let fd = socket(inet, stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    let from: SocketAddrV4 = format!("{ADDRESS}:{port}").parse()?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(from))?;
    connect_to(fd.as_raw_fd(), &SockaddrIn::new(169, 254, 169, 254, 80)).context("no connection")?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// As after a reset: the agent is told nothing of the end of a connection whose port is the next one's, too.
#[test]
fn a_guest_that_forgot_its_connection_gets_through_from_the_same_port() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    guest.namespace.enter(|| {
        let requests = [
            "",
            "GET /latest/ HTTP/1.1\r\nX-Half: ",
            "GET /latest/ HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
            "GET /latest/ HTTP/1.1\r\n\r\n",
            "",
        ];
        for request in requests {
            let mut stream = connect_from(40_000)?;
            stream.write_all(request.as_bytes())?;
            if request.ends_with("\r\n\r\n") {
                let mut status = [0; 12];
                stream.read_exact(&mut status)?;
                assert_eq!(&status, b"HTTP/1.1 401");
            }
            // A socket that is under repair is closed without a word to its peer.
            setsockopt(&stream, sockopt::TcpRepair, &1)?;
        }
        Ok(())
    })
}

#[test]
fn two_hundred_requests_at_once_are_all_answered() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let token = guest.namespace.enter(token)?;
    // More connections at once than an interface may have: they wait for their turn, and none is refused.
    let workers: Vec<_> = (0..200)
        .map(|_| {
            let token = token.clone();
            guest
                .namespace
                .spawn(move || text(&token, "meta-data/instance-id"))
        })
        .collect::<Result<_>>()?;
    for worker in workers {
        assert_eq!(worker.join().unwrap()?, INSTANCE_ID);
    }
    Ok(())
}

#[test]
fn curl_wget_and_urllib_get_right_answers() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let url = "http://169.254.169.254/latest";
    let put = [
        "-sS",
        "--fail",
        "-m",
        "10",
        "-X",
        "PUT",
        "-H",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
    ];
    let token = run(
        &guest,
        "curl",
        &[&put[..], &[&format!("{url}/api/token")]].concat(),
    )?;
    let header = format!("X-aws-ec2-metadata-token: {token}");
    let id = format!("{url}/meta-data/instance-id");
    assert_eq!(
        run(&guest, "curl", &["-sS", "--fail", "-m", "10", "-H", &header, &id])?,
        INSTANCE_ID
    );
    assert_eq!(
        run(
            &guest,
            "wget",
            &["-q", "-T", "10", "-O", "-", "--header", &header, &id]
        )?,
        INSTANCE_ID
    );
    let script = "
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={'X-aws-ec2-metadata-token': sys.argv[2]})
sys.stdout.write(urllib.request.urlopen(request, timeout=10).read().decode())
";
    assert_eq!(run(&guest, "python3", &["-c", script, &id, &token])?, INSTANCE_ID);
    Ok(())
}

#[test]
fn a_guests_identity_document_is_signed_by_its_host() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    let script = r#"
url=http://169.254.169.254/latest
token=$(curl -sS --fail -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $url/api/token)
get() { curl -sS --fail --retry 5 -H "X-aws-ec2-metadata-token: $token" $url/dynamic/instance-identity/$1; }
get document > document
(echo '-----BEGIN PKCS7-----'; get rsa2048; echo; echo '-----END PKCS7-----') > rsa2048.pem
openssl smime -verify -in rsa2048.pem -inform PEM -certfile "$1" -noverify -nointern -out verified
cmp document verified
(echo '-----BEGIN PKCS7-----'; get dsa2048; echo; echo '-----END PKCS7-----') > dsa2048.pem
openssl smime -verify -in dsa2048.pem -inform PEM -certfile "$2" -noverify -nointern -out verified
cmp document verified
get signature | base64 -d > signature
openssl x509 -pubkey -noout -in "$1" > key
openssl dgst -sha256 -verify key -signature signature document
"#;
    let directory = tempfile::tempdir()?;
    let keys = host.files.state().join("keys");
    let mut command = guest.command("sh");
    command
        .current_dir(directory.path())
        .args(["-euc", script, "sh"])
        .args([keys.join("identity.crt"), keys.join("identity-dsa.crt")]);
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let document: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.path().join("document"))?)?;
    assert_eq!(document["instanceId"], INSTANCE_ID);
    Ok(())
}

/// What an operator sees with tcpdump on the host's tap: both directions, and the hop limits.
#[test]
fn a_capture_shows_the_hop_limit_on_the_token_response_alone() -> Result<()> {
    let (host, guest) =
        Host::with_guest(|record| record["MetadataOptions"]["HttpPutResponseHopLimit"] = 3.into())?;
    let mut tcpdump = host.namespace.command("tcpdump");
    tcpdump.args([
        "--immediate-mode",
        "-l",
        "-n",
        "-v",
        "-i",
        "tap0",
        "src host 169.254.169.254 and tcp",
    ]);
    let mut tcpdump = tcpdump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(tcpdump.stderr.take().context("piped")?).lines();
    let is_listening = said
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("listening on"));
    ensure!(is_listening, "tcpdump captures nothing");
    let id = guest
        .namespace
        .enter(|| text(&token()?, "meta-data/instance-id"))?;
    assert_eq!(id, INSTANCE_ID);
    // Every packet is two lines, IP header and TCP header; then come the lines of its payload.
    let mut lines = BufReader::new(tcpdump.stdout.take().context("piped")?)
        .lines()
        .map_while(Result::ok);
    let mut payloads = Vec::new();
    let mut ends = 0;
    while ends < 2 {
        let ip = lines.by_ref().find(|line| line.contains(" IP (tos"));
        let (Some(ip), Some(tcp)) = (ip, lines.next()) else {
            break;
        };
        let field = |line: &str, name: &str| -> Option<u32> {
            let rest = line.split_once(name)?.1.trim_start();
            rest.split(|letter: char| !letter.is_ascii_digit())
                .next()?
                .parse()
                .ok()
        };
        let ttl = field(&ip, "ttl").with_context(|| format!("no ttl in {ip}"))?;
        let length = field(&tcp, "length").with_context(|| format!("no length in {tcp}"))?;
        ends += usize::from(tcp.contains("Flags [F"));
        if length > 0 {
            payloads.push(ttl);
        } else {
            assert_eq!(ttl, 64, "a packet without payload: {tcp}");
        }
    }
    tcpdump.kill()?;
    tcpdump.wait()?;
    assert_eq!(payloads, [3, 64], "the token response, and the other one");
    Ok(())
}

/// A guest that reaches the service over IPv6, too, once its instance's option says so.
fn with_ipv6_guest(option: &str) -> Result<(Host, KernelGuest)> {
    let (host, guest) = Host::with_guest(|record| {
        record["MetadataOptions"]["HttpProtocolIpv6"] = option.into();
    })?;
    guest.add_ipv6()?;
    Ok((host, guest))
}

const IPV6_URL: &str = "http://[fd00:ec2::254]/latest";

#[test]
fn the_ipv6_address_serves_the_same_and_its_token_crosses_no_router() -> Result<()> {
    let (_host, guest) = with_ipv6_guest("enabled")?;
    let capture = guest.namespace.enter(Capture::new)?;
    let token_url = format!("{IPV6_URL}/api/token");
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
    let put = ["-gsS", "--fail", "-m", "10", "-X", "PUT", "-H", ttl, &token_url];
    let token = run(&guest, "curl", &put)?;
    let inbound = capture.inbound()?;
    let (with_token, others): (Vec<_>, Vec<_>) = inbound.iter().partition(|frame| {
        frame
            .windows(token.len())
            .any(|window| window == token.as_bytes())
    });
    ensure!(
        !with_token.is_empty() && others.len() >= 2,
        "{} frames captured",
        inbound.len()
    );
    let hop_limits = |frames: &[&Vec<u8>]| frames.iter().map(|frame| frame[21]).collect::<Vec<_>>();
    ensure!(
        hop_limits(&with_token).iter().all(|limit| *limit == 1),
        "{with_token:02x?}"
    );
    let other_limits = hop_limits(&others);
    // Neighbour advertisements cross no router by another rule.
    ensure!(
        other_limits.iter().all(|limit| [64, 255].contains(limit)),
        "{other_limits:?}"
    );
    ensure!(other_limits.contains(&64), "{other_limits:?}");

    let header = format!("X-aws-ec2-metadata-token: {token}");
    let id = format!("{IPV6_URL}/meta-data/instance-id");
    let get = ["-gsS", "--fail", "-m", "10", "-H", &header, &id];
    assert_eq!(run(&guest, "curl", &get)?, INSTANCE_ID);
    // The session is the instance's, on whichever address.
    let over_ipv4 = guest.namespace.enter(|| text(&token, "meta-data/instance-id"))?;
    assert_eq!(over_ipv4, INSTANCE_ID);
    Ok(())
}

#[test]
fn the_ipv6_address_comes_and_goes_with_the_instances_option() -> Result<()> {
    let (mut host, guest) = with_ipv6_guest("disabled")?;
    let address = "[fd00:ec2::254]:80".parse().unwrap();
    let connects = || {
        guest
            .namespace
            .enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok())
    };
    ensure!(!connects(), "it is served although it is disabled");
    let set = |host: &Host, option: &str| {
        host.files.put_guest(INSTANCE_ID, "tap0", ADDRESS, |record| {
            record["MetadataOptions"]["HttpProtocolIpv6"] = option.into();
        })
    };
    // A connection over IPv4 lives on.
    let mut stream = guest.namespace.enter(connect);
    let changed = Instant::now();
    set(&host, "enabled")?;
    host.agent.wait_for_log("IPv6 too")?;
    println!("in force after {:?}", changed.elapsed());
    // A guest that failed to resolve the address may ask again only after a second.
    wait_for("a connection over IPv6", || Ok(connects()), |connects| *connects)?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    ensure!(response.starts_with("HTTP/1.1 401 "), "{response}");

    set(&host, "disabled")?;
    host.agent.wait_for_log("now bound to")?;
    ensure!(!connects(), "it is served although it is disabled again");
    let (_, log) = host.agent.stop()?;
    let counted = log.iter().find(|line| line.contains("counted: tap tap0"));
    ensure!(
        counted.is_some_and(|line| line.contains("ipv6-disabled")),
        "{counted:?}"
    );
    Ok(())
}

/// What a guest's `eth0` receives from the service.
struct Capture(OwnedFd);

impl Capture {
    fn new() -> Result<Self> {
        Ok(Self(socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            Some(SockProtocol::EthAll),
        )?))
    }

    fn inbound(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) if buffer[6..12] == IMDS_MAC.0 => frames.push(buffer[..length].to_vec()),
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(frames),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
