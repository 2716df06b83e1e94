//! Figures with their doubt: rates at a fixed recall, over seeds that are drawn again and again, and shares of few.

use custody_tests::dice::Dice;

/// Draws of seeds for an interval, and the seed of the dice that draw them.
const DRAWS: usize = 1_000;
pub(super) const DRAWS_SEED: u64 = 7;

/// What one setting gave on one seed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Days that were scored, times agents.
    pub(super) agent_days: u64,
    pub(super) alarms: u64,
    pub(super) false_alarms: u64,
    pub(super) campaigns: u64,
    pub(super) hit: u64,
}

impl Outcome {
    pub(super) fn sum(outcomes: impl Iterator<Item = Self>) -> Self {
        outcomes.fold(Self::default(), |sum, of| Self {
            agent_days: sum.agent_days + of.agent_days,
            alarms: sum.alarms + of.alarms,
            false_alarms: sum.false_alarms + of.false_alarms,
            campaigns: sum.campaigns + of.campaigns,
            hit: sum.hit + of.hit,
        })
    }

    pub(super) fn recall(&self) -> f64 {
        self.hit as f64 / self.campaigns.max(1) as f64
    }

    /// Alarms a day for 1,000 agents.
    pub(super) fn rate(&self) -> f64 {
        self.alarms as f64 * 1_000.0 / self.agent_days.max(1) as f64
    }

    pub(super) fn false_rate(&self) -> f64 {
        self.false_alarms as f64 * 1_000.0 / self.agent_days.max(1) as f64
    }
}

/// A setting of a detector, with its outcome on each seed.
pub(super) struct Setting {
    pub(super) at: u64,
    pub(super) outcomes: Vec<Outcome>,
}

/// The least rate of alarms at which a recall is reached, and the setting that gives it; `None`: none reaches it.
fn least(settings: &[Setting], recall: f64, seeds: &[usize]) -> Option<(f64, u64)> {
    let sums = settings.iter().map(|setting| {
        (setting.at, Outcome::sum(seeds.iter().filter_map(|seed| setting.outcomes.get(*seed).copied())))
    });
    let reach = sums.filter(|(_, sum)| sum.recall() >= recall).map(|(at, sum)| (sum.rate(), at));
    reach.min_by(|one, other| one.0.total_cmp(&other.0))
}

/// Seeds as they were drawn, each time as many as there are.
fn draws(seeds: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut dice = Dice::new(DRAWS_SEED);
    let one = move || {
        let drawn = (0..seeds).map(|_| usize::try_from(dice.within(0..seeds as u64)).unwrap_or_default());
        drawn.collect::<Vec<_>>()
    };
    std::iter::repeat_with(one).take(DRAWS)
}

/// The middle 95 of a hundred; `None` for an end that was not reached.
fn interval(mut all: Vec<Option<f64>>) -> [Option<f64>; 2] {
    // What is not reached is worse than any rate.
    all.sort_by(|one, other| one.unwrap_or(f64::INFINITY).total_cmp(&other.unwrap_or(f64::INFINITY)));
    [25, 975].map(|at| all.get(at * all.len() / 1_000).copied().flatten())
}

/// Alarms a day for 1,000 agents at a recall, their interval over seeds, and the setting.
pub(super) fn at_recall(settings: &[Setting], recall: f64) -> (Option<(f64, u64)>, [Option<f64>; 2]) {
    let seeds = settings.first().map_or(0, |setting| setting.outcomes.len());
    let all: Vec<usize> = (0..seeds).collect();
    let drawn = draws(seeds).map(|drawn| least(settings, recall, &drawn).map(|(rate, _)| rate)).collect();
    (least(settings, recall, &all), interval(drawn))
}

/// A figure of all seeds, and its interval over them.
pub(super) fn over_seeds(outcomes: &[Outcome], of: impl Fn(&Outcome) -> f64) -> (f64, [Option<f64>; 2]) {
    let sum = |seeds: &[usize]| of(&Outcome::sum(seeds.iter().filter_map(|seed| outcomes.get(*seed).copied())));
    let drawn = draws(outcomes.len()).map(|drawn| Some(sum(&drawn))).collect();
    (sum(&(0..outcomes.len()).collect::<Vec<_>>()), interval(drawn))
}

/// The interval of a share of few, by Wilson: `hit` of `all`, at 95 of a hundred.
pub(super) fn wilson(hit: u64, all: u64) -> [f64; 2] {
    let (z, n) = (1.96_f64, all.max(1) as f64);
    let share = hit as f64 / n;
    let middle = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    [-1.0, 1.0].map(|sign| ((middle + sign * half) / (1.0 + z * z / n)).clamp(0.0, 1.0))
}
