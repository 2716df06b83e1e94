//! The traffic is what it says it is.

use std::collections::{BTreeMap, BTreeSet};

use custody::{record, wire::Decision};

use super::*;

fn bytes(item: &Item) -> Vec<u8> {
    record::encode(item.record.clone())
}

#[test]
fn a_seed_gives_the_same_records_and_another_gives_nobody_in_common() {
    let digest = |seed| {
        let mut all = Vec::new();
        for item in Company::new(Plan::of(seed, 60, 10)).take(20_000) {
            all.extend_from_slice(&custody::hash::sha256(&[&bytes(&item), &item.received_at.to_be_bytes()]));
        }
        custody::hash::sha256(&[&all])
    };
    assert_eq!(digest(1), digest(1));
    let people = |seed| {
        let calls = Company::new(Plan::of(seed, 60, 4)).filter_map(|item| match item.record {
            Kind::Call(call) => Some([call.member, call.token, call.agent]),
            _ => None,
        });
        calls.flatten().flatten().collect::<BTreeSet<_>>()
    };
    let (one, other) = (people(1), people(2));
    assert!(one.len() > 100 && one.is_disjoint(&other), "{} {}", one.len(), other.len());
}

#[test]
fn records_are_in_form_come_in_order_and_keep_the_seasons() {
    let mut last = 0;
    let (mut weekday, mut weekend, mut calls, mut denied) = (0_u64, 0_u64, 0_u64, 0_u64);
    for item in Company::new(Plan::of(7, 120, 28)) {
        record::check(&bytes(&item)).unwrap();
        assert!(item.received_at >= last, "out of order");
        last = item.received_at;
        let Kind::Call(call) = &item.record else { continue };
        if item.campaign.is_none() {
            calls += 1;
            denied += u64::from(call.decision == Decision::Denied as i32);
            let services = call.client == Some(wire::call::Client::ClientName("custody-agent".to_owned()));
            let day = (call.started_at / DAY + 3) % 7;
            *(if day >= 5 { &mut weekend } else { &mut weekday }) += u64::from(!services);
        }
    }
    assert!(calls > 50_000, "{calls}");
    assert!((3..10).contains(&(denied * 1_000 / calls)), "{denied} of {calls} denied");
    assert!(weekday / 5 > 5 * (weekend / 2), "{weekday} on weekdays, {weekend} at weekends");
}

#[test]
fn each_campaign_is_there_with_the_records_that_it_counts() {
    let mut company = Company::new(Plan { campaigns_of_each: 2, ..Plan::of(3, 150, 21) });
    let mut found: BTreeMap<usize, u64> = BTreeMap::new();
    for item in company.by_ref() {
        if let Some(campaign) = item.campaign {
            let calls = !matches!(&item.record, Kind::Call(call) if call.phase == wire::Phase::Intent as i32);
            *found.entry(campaign).or_default() += u64::from(calls);
        }
    }
    let kinds: BTreeSet<_> = company.campaigns().iter().map(|campaign| campaign.kind).collect();
    assert_eq!((kinds.len(), company.campaigns().len()), (CampaignKind::ALL.len(), 2 * CampaignKind::ALL.len()));
    for (index, campaign) in company.campaigns().iter().enumerate() {
        assert!(campaign.records > 0, "{campaign:?}");
        assert_eq!(found.get(&index), Some(&campaign.records), "{campaign:?}");
    }
}

#[test]
fn four_seeds_show_each_kind_at_each_pace() {
    let mut seen: BTreeMap<CampaignKind, BTreeSet<u64>> = BTreeMap::new();
    for seed in 201..205 {
        for campaign in Company::new(Plan::of(seed, 120, 35)).campaigns() {
            seen.entry(campaign.kind).or_default().insert(campaign.pace_quarters);
        }
    }
    assert_eq!(seen.len(), CampaignKind::ALL.len());
    assert!(seen.values().all(|paces| paces.len() == 4), "{seen:?}");
}

#[test]
fn memory_does_not_grow_with_the_records() {
    let mut company = Company::new(Plan::of(5, 100, 60));
    let mut most = [0; 2];
    for most in &mut most {
        for _ in 0..60_000 {
            company.next().unwrap();
            *most = (*most).max(company.ready.len() + company.actors.len());
        }
    }
    assert!(most[1] < most[0] * 2, "{most:?}");
}

#[test]
fn changes_for_good_reasons_are_there_and_a_plan_without_them_has_none() {
    assert!(Company::new(Plan::of(3, 150, 35)).changes().is_empty());
    let plan = Plan { campaigns_of_each: 0, changes_of_each: 2, ..Plan::of(3, 150, 35) };
    let company = Company::new(Plan { first_day: plan.first_day + 21, ..plan });
    let count = |kind| company.changes().iter().filter(|change| change.kind == kind).count();
    assert_eq!(ChangeKind::ALL.map(count), [2, 2, 1, 2]);
    let nights: Vec<Change> =
        company.changes().iter().filter(|of| of.kind == ChangeKind::OnCallNight).cloned().collect();
    let (start, mut next_version, mut by_night) = (company.start(), 0, 0);
    for item in company {
        record::check(&bytes(&item)).unwrap();
        let Kind::Call(call) = &item.record else { continue };
        let is_next = matches!(&call.target, Some(wire::call::Target::Tool(tool)) if tool.ends_with("_v2"));
        next_version += u64::from(is_next);
        let of = |night: &Change| {
            let called = call.member.as_ref().is_some_and(|member| night.members.contains(member));
            called && (night.from..night.until).contains(&(call.started_at - start))
        };
        by_night += u64::from(nights.iter().any(of));
    }
    assert!(next_version > 50 && by_night >= 30, "{next_version} {by_night}");
}
