package query

import "strings"

// Named is a query with a name for people.
type Named struct{ Name, Text string }

// Names of benchmark questions that targets speak of.
const (
	BenchLift    = "experiment_lift, all experiments"
	BenchRawWeek = "raw scan of the largest experiment"
)

// benchLargest is the experiment with the most traffic in the labels of bench_labels.sql.
const benchLargest = "x-1"

// BenchQuestions are asked by `ctrloop bench query`, in this order. id is an impression that was corrected. A question whose rows
// are many ends with benchNull: BenchRun then makes and looks at all of them and returns one.
func BenchQuestions(id string) []Named {
	view := func(name string) string { return "SELECT * FROM " + name }
	of := func(experiment string) string { return " WHERE experiment = '" + experiment + "'" }
	return []Named{
		{BenchLift, view("experiment_lift")},
		{"experiment_lift, the largest", view("experiment_lift") + of(benchLargest)},
		{"experiment_lift, a later one", view("experiment_lift") + of("x-4")},
		{BenchRawWeek, compose("bench_arm_sums", parts{"experiment": benchLargest})},
		{"experiment_lift_by_category", view("experiment_lift_by_category") + of(benchLargest)},
		{"experiment_results", view("experiment_results")},
		{"experiment_health", view("experiment_health")},
		{"experiment_cuped", view("experiment_cuped(id = 'x-4', days = 14)")},
		{"ctr_by_creative", view("ctr_by_creative") + benchNull},
		{"ctr_by_creative, one product", view("ctr_by_creative") + " WHERE product = 'product-7'"},
		{"ctr_by_product_day", view("ctr_by_product_day") + benchNull},
		{"ctr_by_category", view("ctr_by_category")},
		{"pair_evidence", view("pair_evidence") + benchNull},
		{"model_timeline", view("model_timeline") + benchNull},
		{"creative_fatigue", view("creative_fatigue") + benchNull},
		{"click_delay", view("click_delay") + benchNull},
		{"freshness", view("freshness")},
		{"label_horizon", view("label_horizon")},
		{"trace_impression", view("trace_impression(id = '" + id + "')")},
		{"labels_mature, count", "SELECT count(), sum(clicked) FROM labels_mature"},
		{"audit_mismatch", view("audit_mismatch") + benchNull},
	}
}

// benchNull is how people say that no row is wanted.
const benchNull = " FORMAT Null"

// BenchRun is a question as it is run, without a limit of time and with the comment in the server's query log.
func BenchRun(question, comment string) string {
	if head, null := strings.CutSuffix(question, benchNull); null {
		question = "SELECT sum(cityHash64(*)) FROM (" + head + ")"
	}
	return question + " SETTINGS log_comment = '" + comment + "', max_execution_time = 0"
}

// BenchMergeDay makes one part of a day, which is a partition of bench_days.sql.
func BenchMergeDay(day string) string { return compose("bench_merge_day", parts{"day": day}) }
