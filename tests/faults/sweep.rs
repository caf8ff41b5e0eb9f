//! The toy operation under every fault, and under two.

use pgherd::engine::record::End;
use pgherd::engine::view::Ended;

use crate::harness::{CallFault, Case, Fault, MISHAPS, Then, run_case, sample, with_one_more_fault};
use crate::toy::Toy;

fn clean() -> Case {
    Case { drives: vec![vec![]], then: Then::Resume }
}

#[tokio::test(start_paused = true)]
async fn without_a_fault_everything_is_done() {
    let trace = run_case(&Toy, &clean()).await;
    assert_eq!(trace.ended, Some(Ended::By(End::Done)));
    assert_eq!(trace.drives[0].records.last(), Some(&(2 + 2 * 9 - 1)), "header, two a step, end");
}

#[tokio::test(start_paused = true)]
async fn under_any_one_fault_it_is_all_done_or_all_undone() {
    let trace = run_case(&Toy, &clean()).await;
    let cases = with_one_more_fault(&clean(), &trace);
    let (mut done, mut restored) = (0, 0);
    for case in &cases {
        match run_case(&Toy, case).await.ended {
            Some(Ended::By(End::Done)) => done += 1,
            Some(Ended::By(End::Restored { .. })) => restored += 1,
            ended => panic!("{case:?}: {ended:?}"),
        }
    }
    assert!(done > 50 && restored > 50, "of {} cases {done} were done, {restored} restored", cases.len());
}

#[tokio::test(start_paused = true)]
async fn a_second_fault_on_the_way_back_or_on_changes_nothing_in_that() {
    let calls = run_case(&Toy, &clean()).await.drives[0].calls.len();
    let mut cases = Vec::new();
    for at in 0..calls {
        let first = Case { drives: vec![vec![Fault::Call(at, CallFault::FailsAfter)]], then: Then::Resume };
        let trace = run_case(&Toy, &first).await;
        cases.extend(with_one_more_fault(&first, &trace));
    }
    for case in sample(cases, 1_500, 1) {
        run_case(&Toy, &case).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_is_hit_itself_can_be_resumed() {
    let records = run_case(&Toy, &clean()).await.drives[0].records.clone();
    let mut cases = Vec::new();
    for at in records {
        for mishap in MISHAPS {
            for then in [Then::Resume, Then::Undo] {
                let killed = Case { drives: vec![vec![Fault::Record(at, mishap)], vec![]], then };
                let trace = run_case(&Toy, &killed).await;
                if trace.drives.len() > 1 {
                    cases.extend(with_one_more_fault(&killed, &trace));
                }
            }
        }
    }
    for case in sample(cases, 1_500, 2) {
        run_case(&Toy, &case).await;
    }
}
