use super::*;

#[test]
fn what_is_measured_is_what_codes_mean_also_where_that_is_no_number() {
    let measured = Distortion { count: 3, weighted_noise: f64::NAN, ..Distortion::default() };
    assert!(check_measured("w", &measured, &measured.clone()).is_ok());
    let other = Distortion { noise: 1e-300, ..measured };
    let failure = check_measured("w", &measured, &other).unwrap_err();
    assert_eq!(failure.exit, Exit::Internal);
}
