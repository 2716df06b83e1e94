//! What deciding on a call takes, with few members and tools and with many: `bench decide FOLDER`. The shim's own code, in this process:
//! what the proxy's arms cannot tell apart, because a call on its way through processes takes a hundred times as long.
//!
//! What must hold: whoever calls is the last member that the policy names, and what they call the last rule allows; both sizes
//! are measured in every round.

use std::time::Instant;

use gateway_shim::access::{Access, Ask};
use serde_json::json;

use crate::{
    Done, print,
    proxy::median,
    proxy_setup::{Member, policy},
};

/// Members, and tools with a rule for each.
const SIZES: [(usize, usize); 2] = [(10, 10), (10_000, 1_000)];
const ROUNDS: usize = 31;
/// Decisions of one round.
const DECISIONS: u32 = 2_000;

/// One size.
struct Arm {
    access: Access,
    authorization: String,
    times_us: Vec<f64>,
}

impl Arm {
    fn new(members: usize, tools: usize) -> Done<Self> {
        let members: Vec<Member> = (0..members).map(|_| Member::new()).collect();
        let access = Access::of(&policy(&members, tools), None).map_err(|faults| faults.to_string())?;
        let authorization = format!("Bearer {}", members.last().ok_or("no member")?.token());
        Ok(Self { access, authorization, times_us: Vec::new() })
    }

    /// Who calls, whether they may, and a place within their limits: what a call asks the access policy.
    fn decide(&self, now_us: u64) -> Done {
        let ask =
            Ask { server: "fixed", method: "tools/call", name: Some("echo"), from_server: false, request_bytes: 300 };
        let caller = self.access.authenticate(Some(&self.authorization), now_us).map_err(|_| "unknown")?;
        if !self.access.judge(&caller, &ask).allowed {
            return Err("denied".into());
        }
        drop(self.access.enter(&caller, &ask).map_err(|_| "over a limit")?);
        Ok(())
    }

    fn round(&mut self) -> Done {
        let now_us = gateway_shim::clock::now_us();
        let began = Instant::now();
        for _ in 0..DECISIONS {
            self.decide(now_us)?;
        }
        self.times_us.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(DECISIONS));
        Ok(())
    }
}

pub(crate) fn run() -> Done {
    let mut arms = SIZES.map(|(members, tools)| Arm::new(members, tools));
    for _ in 0..ROUNDS {
        for arm in &mut arms {
            arm.as_mut().map_err(|why| why.to_string())?.round()?;
        }
    }
    for (arm, (members, tools)) in arms.into_iter().zip(SIZES) {
        print(&json!({"members": members, "tools": tools, "decision_us": median(&mut arm?.times_us)}));
    }
    Ok(())
}
