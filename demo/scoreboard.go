package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"ctrloop/lab"
)

// Scoreboard is what a run of the demo measured. Each field is a measurement of this run: a stage that was
// not reached leaves its part at zero and Outcome says why.
type Scoreboard struct {
	Seed        uint64    `json:"seed"`
	WallSeconds float64   `json:"wall_seconds"`
	Outcome     string    `json:"outcome"` // promoted, rolled back, inconclusive, or why no candidate came so far
	Resumed     int       `json:"resumed"` // how often the run was interrupted and went on
	Quick       bool      `json:"quick"`
	Images      string    `json:"images"` // what drew the creatives
	Stream      Stream    `json:"stream"`
	Warehouse   Warehouse `json:"warehouse"`
	Pairs       Pairs     `json:"pairs"`
	Reward      Reward    `json:"reward"`
	Epochs      []Epoch   `json:"epochs"`
	// EqualLift is the matching rate of PCPO less DPO's at the largest true lift that both reach.
	EqualLift  *lab.EqualLift `json:"equal_lift,omitempty"`
	Shipped    lab.Shipped    `json:"shipped"`            // the epoch that the gates chose
	BestCTR    float64        `json:"best_ctr,omitempty"` // the oracle's best creatives of unseen products, mean
	Generation Generation     `json:"generation"`
	Swap       Swap           `json:"swap"`
	Experiment Experiment     `json:"experiment"`
	// Freshness is the event time between the newest click and the newest one that the live model learned from, in
	// seconds; of a model that has learned from none (Learned), the age of the whole run.
	Freshness float64   `json:"freshness_seconds"`
	Learned   bool      `json:"live_has_learned"`
	Versions  []Version `json:"versions"`
	Phases    []Phase   `json:"phases"`
}

// Stream compares labels with the oracle.
type Stream struct {
	Impressions    int64 `json:"impressions"`
	Clicks         int64 `json:"clicks"`
	LabelsExpected int64 `json:"labels_expected"`
	Labels         int64 `json:"labels"` // impressions with a label in the warehouse
	Corrected      int64 `json:"corrected"`
	Lost           int64 `json:"lost"`
	Duplicate      int64 `json:"duplicate"`
	Spurious       int64 `json:"spurious"`
	LedgerOK       bool  `json:"ledger_ok"`
}

// Warehouse is the audit of labels.v1 against the table.
type Warehouse struct {
	Rows          int64 `json:"rows"`
	AuditMismatch int64 `json:"audit_mismatch"`
}

// Pairs of the data sets of the run.
type Pairs struct {
	Count      int64   `json:"count"`
	MeanWeight float64 `json:"mean_weight"`
}

// Reward is the reward model on pairs of products that it never saw. Ceiling is what the oracle of true
// click-through rates scores on the same noisy labels.
type Reward struct {
	Accuracy        float64            `json:"accuracy"`
	Ceiling         float64            `json:"ceiling"`
	SwapConsistency float64            `json:"swap_consistency"`
	Baselines       map[string]float64 `json:"baselines"`
	TestPairs       int64              `json:"test_pairs"`
	// FractionOfCeiling is (accuracy - 0.5) / (ceiling - 0.5).
	FractionOfCeiling float64 `json:"fraction_of_ceiling"`
	TrueAccuracy      float64 `json:"true_accuracy"`   // share of pairs whose true order it names
	Drift             any     `json:"drift,omitempty"` // of the model before on fresh pairs, once a second cycle ran
}

// Epoch of the preference rounds, on products that training never saw.
type Epoch struct {
	Epoch int  `json:"epoch"`
	DPO   *Arm `json:"dpo,omitempty"`
	PCPO  *Arm `json:"pcpo,omitempty"`
}

// Arm is one model at one epoch, judged by the oracle, see lab.EpochReport.
type Arm struct{ lab.EpochReport }

// Generation of creatives.
type Generation struct {
	Images               int64 `json:"images"`
	ProductPixelMaxError int64 `json:"product_pixel_max_error"`
}

// Swap of prompt models under load.
type Swap struct {
	Count        int64   `json:"count"`
	Requests     int64   `json:"requests"`
	Failed       int64   `json:"failed"`
	WrongVersion int64   `json:"wrong_version"`
	FlipP99MS    float64 `json:"flip_p99_ms"`
}

// Experiment is the A/B test of the candidate. Lifts are relative; TrueLift is the oracle's, over the
// creatives that served, weighted by the products' traffic.
type Experiment struct {
	ID          string   `json:"id"`
	Decision    string   `json:"decision"`
	Rule        string   `json:"rule"`
	Lift        float64  `json:"lift"`
	LiftLow     float64  `json:"lift_low"`
	LiftHigh    float64  `json:"lift_high"`
	TrueLift    float64  `json:"true_lift"`
	Impressions int64    `json:"impressions"`
	SRMP        *float64 `json:"srm_p"` // null: not tested
	Categories  int64    `json:"categories"`
}

// MarshalJSON writes null for what there is only after an experiment: a lift of 0 would be a measurement.
func (e Experiment) MarshalJSON() ([]byte, error) {
	type plain Experiment
	if e.ID != "" {
		return json.Marshal(plain(e))
	}
	return json.Marshal(struct {
		plain
		Lift     *float64 `json:"lift"`
		LiftLow  *float64 `json:"lift_low"`
		LiftHigh *float64 `json:"lift_high"`
		TrueLift *float64 `json:"true_lift"`
		SRMP     *float64 `json:"srm_p"`
	}{plain: plain(e)})
}

// Version of the prompt model.
type Version struct {
	Version string  `json:"version"`
	State   string  `json:"state"`
	Reason  string  `json:"reason,omitempty"`
	TrueCTR float64 `json:"true_ctr"` // of its creatives, weighted by traffic; 0 if it has none
}

// Phase is a part of the demo and how long it took, over all attempts.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

func percent(v float64) string { return fmt.Sprintf("%+.1f %%", 100*v) }

// Print writes the scoreboard for people.
func (s *Scoreboard) Print(w io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "\nScoreboard, seed %d, %s", s.Seed, time.Duration(s.WallSeconds*float64(time.Second)).Round(time.Second))
	if s.Resumed > 0 {
		fmt.Fprintf(w, ", resumed %d times", s.Resumed)
	}
	fmt.Fprintf(w, "\n\n")
	line("outcome", "%s", s.Outcome)
	ledger := "closed"
	if !s.Stream.LedgerOK {
		ledger = "OPEN"
	}
	line(
		"stream",
		"%d impressions, %d clicks; %d of %d labels; lost %d, duplicate %d, spurious %d; ledger %s",
		s.Stream.Impressions,
		s.Stream.Clicks,
		s.Stream.Labels,
		s.Stream.LabelsExpected,
		s.Stream.Lost,
		s.Stream.Duplicate,
		s.Stream.Spurious,
		ledger,
	)
	line("warehouse", "%d rows, audit mismatches %d", s.Warehouse.Rows, s.Warehouse.AuditMismatch)
	line("pairs", "%d, mean weight %.2f", s.Pairs.Count, s.Pairs.MeanWeight)
	if s.Reward.TestPairs > 0 {
		line("reward", "accuracy %.3f on %d unseen pairs, noise ceiling %.3f (%.2f of it), true order %.3f, swap consistency %.3f",
			s.Reward.Accuracy, s.Reward.TestPairs, s.Reward.Ceiling, s.Reward.FractionOfCeiling, s.Reward.TrueAccuracy, s.Reward.SwapConsistency)
		names := make([]string, 0, len(s.Reward.Baselines))
		for n := range s.Reward.Baselines {
			names = append(names, n)
		}
		sort.Strings(names)
		var parts []string
		for _, n := range names {
			parts = append(parts, fmt.Sprintf("%s %.3f", n, s.Reward.Baselines[n]))
		}
		line("", "baselines: %s", strings.Join(parts, ", "))
	}
	s.printEpochs(w)
	if e := s.EqualLift; e != nil && e.Difference != nil {
		line("", "PCPO matches %+.3f against DPO where both have a lift of %s", *e.Difference, percent(e.Lift))
	}
	line("generation", "%d images by %s, largest error on product pixels %d", s.Generation.Images, s.Images, s.Generation.ProductPixelMaxError)
	line(
		"swap",
		"%d swaps, %d requests, failed %d, wrong version %d, flip p99 %.2f ms",
		s.Swap.Count,
		s.Swap.Requests,
		s.Swap.Failed,
		s.Swap.WrongVersion,
		s.Swap.FlipP99MS,
	)
	if s.Experiment.ID != "" {
		line("experiment", "%s (%s)", s.Experiment.Decision, s.Experiment.Rule)
		line(
			"",
			"lift %s, interval %s to %s, true lift %s; %d impressions, SRM p %s, %d categories",
			percent(
				s.Experiment.Lift,
			),
			percent(s.Experiment.LiftLow),
			percent(s.Experiment.LiftHigh),
			percent(s.Experiment.TrueLift),
			s.Experiment.Impressions,
			sampleRatio(s.Experiment.SRMP),
			s.Experiment.Categories,
		)
	}
	age := time.Duration(s.Freshness * float64(time.Second)).Round(time.Second)
	if s.Learned {
		line("freshness", "the live model has learned from clicks up to %s (event time) before the newest", age)
	} else {
		line("freshness", "the live model has learned from no click of this shop yet, %s (event time) after its start", age)
	}
	for _, v := range s.Versions {
		line("version", "%s %s %s", v.Version, v.State, v.Reason)
	}
	fmt.Fprintln(w)
}

// sampleRatio is the p of the sample ratio in words.
func sampleRatio(p *float64) string {
	if p == nil {
		return "not known"
	}
	return fmt.Sprintf("%.2f", *p)
}

func (s *Scoreboard) printEpochs(w io.Writer) {
	if len(s.Epochs) == 0 {
		return
	}
	fmt.Fprintf(w, "  %-12s %5s  %28s   %28s\n", "rounds", "epoch", "DPO: match  CTR   valid bait", "PCPO: match  CTR   valid bait")
	cell := func(a *Arm) string {
		if a == nil {
			return "-"
		}
		return fmt.Sprintf("%.3f  %.4f  %.2f  %.2f", a.Matching, a.TrueCTR, a.Valid, a.Clickbait)
	}
	for _, e := range s.Epochs {
		fmt.Fprintf(w, "  %-12s %5d  %28s   %28s\n", "", e.Epoch, cell(e.DPO), cell(e.PCPO))
	}
}
