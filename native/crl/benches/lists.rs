//! Measures the CPU time and the memory for reading lists. `cargo bench -p rekindle_crl`. Fails if
//! 100,000 entries take more than 50 ms, or 2 MiB.

#[path = "../src/testing.rs"]
#[allow(dead_code)]
mod testing;

use rustix::time::{clock_gettime, ClockId};
use testing::{crl, entry, extension, pem, tlv, Crl};

fn cpu_ms() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 * 1000.0 + now.tv_nsec as f64 / 1_000_000.0
}

fn main() {
    for number in [100_000u32, 1_000_000] {
        let reason = extension(&[0x55, 0x1d, 21], false, &tlv(10, &[1]));
        // Serial numbers have sixteen bytes, as with most authorities, and every second entry has a reason.
        let entries: Vec<_> = (0..number)
            .map(|n| {
                let serial = [
                    &[1][..],
                    &n.wrapping_mul(2_654_435_761).to_be_bytes(),
                    &[7; 11],
                ];
                let reasons = [reason.clone()];
                entry(&serial.concat(), &reasons[..(n % 2) as usize])
            })
            .collect();
        let der = crl("ca", &entries, Crl::default());
        for (form, file) in [("DER", der.clone()), ("PEM", pem(&der))] {
            let begun = cpu_ms();
            let lists = rekindle_crl::parse(&file).expect("a list");
            let took_ms = cpu_ms() - begun;
            let kept: usize = lists[0]
                .revoked
                .iter()
                .map(|(_, hashes)| 8 * hashes.len())
                .sum();
            assert!(
                number > 100_000 || took_ms <= 50.0 && kept <= 2 << 20,
                "{form}: {took_ms:.0} ms, {kept} bytes"
            );
            println!(
                "{number} entries, {form} of {:.1} MiB: {took_ms:.0} ms of CPU, {:.2} MiB kept",
                file.len() as f64 / (1 << 20) as f64,
                kept as f64 / (1 << 20) as f64
            );
        }
    }
}
