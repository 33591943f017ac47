//! The session layer: whatever a host left behind, the next one gets through.

use std::io::Write;
use std::time::Duration;

use crate::rig::{self, ECHO, echo, expect_working, guest, port, soon};
use protocols::serial::codec::{self, Nonce};
use protocols::{Link, LinkError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Half the header of a yamux data frame.
const HALF_A_FRAME: [u8; 6] = [0, 0, 0, 1, 0, 0];

#[tokio::test]
async fn a_half_sent_frame_and_an_instant_reconnect_recover() {
    let (host, device) = port();
    let _guest = echo(guest(device, &[ECHO]));
    let mut dying = host.stream();
    dying
        .write_all(&codec::reset(Nonce::new([1; 16])))
        .await
        .unwrap();
    dying.write_all(&HALF_A_FRAME).await.unwrap();
    drop(dying);
    expect_working(&host.link().await).await;
}

#[tokio::test]
async fn a_host_that_dies_at_any_byte_of_its_reset_does_no_harm() {
    let (host, device) = port();
    let _guest = echo(guest(device, &[ECHO]));
    let reset = codec::reset(Nonce::new([9; 16]));
    for cut in 0..=reset.len() {
        host.stream().write_all(&reset[..cut]).await.unwrap();
        expect_working(&host.link().await).await;
    }
}

#[tokio::test]
async fn stale_bytes_before_a_session_are_discarded_at_both_ends() {
    let (host, device) = port();
    let stale: Vec<u8> = (0..60_000_u32)
        .map(|n| (n % 256).to_le_bytes()[0])
        .collect();
    // What the host of a saved template left unread for the guest, and the
    // guest for it, the answer to an older session among it.
    host.stream().write_all(&stale).await.unwrap();
    let mut to_host = std::fs::File::from(device.try_clone().unwrap());
    to_host.write_all(&stale).unwrap();
    to_host
        .write_all(&codec::acknowledgement(Nonce::new([3; 16])))
        .unwrap();
    to_host.write_all(&HALF_A_FRAME).unwrap();
    let _guest = echo(guest(device, &[ECHO]));
    expect_working(&host.link().await).await;
}

#[tokio::test]
async fn sixty_hosts_in_a_row_each_dying_in_mid_write_all_get_through() {
    let (host, device) = port();
    let _guest = echo(guest(device, &[ECHO]));
    let host = std::sync::Arc::new(host);
    for _ in 0..60 {
        let dying = std::sync::Arc::clone(&host);
        // A runtime of its own, so that dropping it kills this host and all
        // its tasks wherever they are.
        let death = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let link = dying.link().await;
                let mut stream = link.open(ECHO, rig::SOON).await.unwrap();
                // More than the windows hold, so that it cannot all be sent.
                let flood = vec![0xff; 1 << 20];
                let sent = tokio::time::timeout(Duration::from_millis(2), stream.write_all(&flood));
                assert!(sent.await.is_err());
            });
        });
        death.await.unwrap();
    }
    expect_working(&host.link().await).await;
}

#[tokio::test]
async fn a_new_session_ends_the_streams_of_the_old_one_in_the_guest() {
    let (host, device) = port();
    let mut listener = guest(device, &[ECHO]);
    let first = host.link().await;
    let (opened, accepted) = tokio::join!(first.open(ECHO, rig::SOON), soon(listener.accept()));
    let _held = opened.unwrap();
    let mut old = accepted.unwrap().stream;
    // A host that died leaves its end open in this rig; only the reset tells.
    let _second = host.link().await;
    let mut rest = Vec::new();
    soon(old.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, []);
    assert!(old.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn a_host_that_vanishes_is_noticed_by_the_guest_at_once() {
    let (host, device) = port();
    let mut listener = guest(device, &[ECHO]);
    let link = host.link().await;
    let (opened, accepted) = tokio::join!(link.open(ECHO, rig::SOON), soon(listener.accept()));
    let mut stream = accepted.unwrap().stream;
    let begun = std::time::Instant::now();
    drop((opened, host));
    link.close();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    // No timer of the link's own is that short.
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_guest_that_vanishes_is_noticed_by_the_host_at_once() {
    let (host, device) = port();
    let mut listener = guest(device, &[ECHO]);
    let link = host.link().await;
    let (opened, accepted) = tokio::join!(link.open(ECHO, rig::SOON), soon(listener.accept()));
    let mut stream = opened.unwrap();
    drop((listener, accepted));
    soon(link.closed()).await;
    assert!(link.is_closed());
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(matches!(
        link.open(ECHO, rig::SOON).await,
        Err(LinkError::Closed)
    ));
}

#[tokio::test]
async fn a_guest_that_never_answers_is_an_error_at_the_deadline() {
    let (host, mut device) = {
        let (host, device) = port();
        (host, std::fs::File::from(device))
    };
    let link = Link::over_serial(host.stream()).unwrap();
    device.write_all(&[0xff; 10_000]).unwrap();
    assert!(matches!(
        link.established(Duration::from_millis(50)).await,
        Err(LinkError::Deadline { .. })
    ));
    assert!(matches!(
        link.open(ECHO, Duration::from_millis(50)).await,
        Err(LinkError::Deadline { .. })
    ));
}

#[tokio::test]
async fn streams_may_be_opened_before_the_guest_is_there() {
    let (host, device) = port();
    let link = Link::over_serial(host.stream()).unwrap();
    let (opened, ()) = tokio::join!(link.open(ECHO, rig::SOON), async {
        let _guest = echo(guest(device, &[ECHO]));
        tokio::task::yield_now().await;
    });
    rig::expect_echo(&mut opened.unwrap(), b"early").await;
}

#[tokio::test]
async fn a_port_nobody_is_connected_to_costs_no_processor_time() {
    let (host, device) = port();
    let mut listener = guest(device, &[ECHO]);
    drop(host);
    let used = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(
            now.tv_sec.unsigned_abs(),
            u32::try_from(now.tv_nsec).unwrap(),
        )
    };
    let before = used();
    let idle = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(idle.is_err());
    assert!(used() - before < Duration::from_millis(50));
}
