// SPDX-License-Identifier: BSD-3-Clause
//! How long to watch an empty ring before we ask for a kick. A kick takes longer than a request.

use std::time::{Duration, Instant};

const FIRST_NS: u64 = 4_000;

/// How long the next watch lasts: longer after each success, shorter after each failure.
#[derive(Default)]
pub struct Window {
    ns: u64,
    misses: u32,
}

impl Window {
    /// Watch until `ready` returns true, for at most `max_ns` nanoseconds; return whether it did.
    pub fn watch(&mut self, max_ns: u64, ready: impl Fn() -> bool) -> bool {
        if max_ns == 0 {
            return false;
        }
        if self.ns == 0 {
            // Watching did not help before. Try it again at every 16th call: the driver may behave
            // differently now.
            self.misses += 1;
            if self.misses % 16 != 0 {
                return false;
            }
            self.ns = FIRST_NS;
        }
        let end = Instant::now() + Duration::from_nanos(self.ns.min(max_ns));
        loop {
            for _ in 0..16 {
                if ready() {
                    self.ns = (self.ns * 2).min(max_ns);
                    self.misses = 0;
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                self.ns /= 2;
                if self.ns < FIRST_NS / 2 {
                    self.ns = 0;
                }
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_of_zero_never_watches() {
        let mut window = Window::default();
        assert!((0..100).all(|_| !window.watch(0, || panic!("ready was called"))));
    }

    #[test]
    fn window_grows_with_success_up_to_its_limit() {
        let mut window = Window::default();
        while !window.watch(10_000, || true) {}
        for _ in 0..20 {
            assert!(window.watch(10_000, || true));
        }
        assert_eq!(window.ns, 10_000);
    }

    #[test]
    fn window_shrinks_to_zero_without_success() {
        let mut window = Window {
            ns: 32_000,
            misses: 0,
        };
        for _ in 0..5 {
            assert!(!window.watch(32_000, || false));
        }
        assert_eq!(window.ns, 0);
    }
}
