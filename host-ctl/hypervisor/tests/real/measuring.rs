//! What a restore takes, next to the least it can take.

use std::fs;
use std::time::{Duration, Instant};

use hypervisor::floor::RestoreInput;
use hypervisor::{Hypervisor, Span};

use crate::lab::{Console, Lab};

/// Restores of each kind, taken in turns so that both see the same machine.
const ROUNDS: usize = 11;

/// The shorter of each step.
fn least_of(before: Vec<Span>, now: Vec<Span>) -> Vec<Span> {
    if before.is_empty() {
        return now;
    }
    let pairs = before.into_iter().zip(now);
    pairs
        .map(|(one, other)| {
            if one.duration_ns < other.duration_ns {
                one
            } else {
                other
            }
        })
        .collect()
}

#[tokio::test]
async fn the_bare_floor_is_below_a_restore_and_both_are_told() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("origin", lab.shared());
    let vm = lab.driver.boot(&spec).await.unwrap();
    Console::connect(&spec.console)
        .await
        .hear("Linux version")
        .await;
    vm.pause().await.unwrap();
    let saved = vm.save(lab.directory.path()).await.unwrap();
    eprintln!("save: {} bytes, {:?}", saved.bytes, saved.duration);
    vm.kill().await.unwrap();

    let (mut driver, mut floor, mut spans) = (Vec::new(), Vec::new(), Vec::<Span>::new());
    for round in 0..ROUNDS {
        let rebind = lab.rebind(&spec, &format!("clone-{round}"), lab.private());
        let begun = Instant::now();
        let vm = lab
            .driver
            .restore(lab.directory.path(), &spec, &rebind)
            .await
            .unwrap();
        let mut steps = vm.spans();
        vm.resume().await.unwrap();
        driver.push(begun.elapsed());
        steps.extend(vm.spans());
        spans = least_of(spans, steps);
        vm.kill().await.unwrap();

        let rebind = lab.rebind(&spec, &format!("floor-{round}"), lab.private());
        let own = spec.rebound(&rebind).unwrap();
        let input = lab.driver.restore_input(lab.directory.path(), &own);
        let input = RestoreInput::Qemu(Box::new(input));
        let path = lab.path(&format!("floor-{round}.json"));
        fs::write(&path, serde_json::to_vec(&input).unwrap()).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_restore-floor"))
            .arg(&path)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let microseconds = printed
            .split_whitespace()
            .find_map(|word| word.strip_prefix("cont_us="))
            .map(|number| number.parse().unwrap());
        floor.push(Duration::from_micros(
            microseconds.unwrap_or_else(|| panic!("{:?}", output.stderr)),
        ));
    }
    driver.sort();
    floor.sort();
    eprintln!(
        "driver: least {:?}, median {:?}",
        driver[0],
        driver[ROUNDS / 2]
    );
    eprintln!(
        "floor:  least {:?}, median {:?}",
        floor[0],
        floor[ROUNDS / 2]
    );
    for span in spans {
        eprintln!(
            "{:>9.3} ms  {}",
            Duration::from_nanos(span.duration_ns).as_secs_f64() * 1e3,
            span.name
        );
    }
    // A busy machine disturbs either; the least of many is what counts.
    assert!(
        driver[0] < floor[0] * 2,
        "the driver adds more than the restore itself takes"
    );
}
