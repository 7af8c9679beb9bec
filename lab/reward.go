package lab

import (
	"fmt"
	"math"
	"path/filepath"

	"ctrloop/pairer/dataset"
)

// RewardFigures are a reward model on pairs of products that it never saw.
type RewardFigures struct {
	Pairs    int     `json:"pairs"`
	Accuracy float64 `json:"accuracy"` // on the noisy labels; a tie counts half
	// Ceiling is what the true click-through rates score on the same labels: nobody can do better.
	Ceiling float64 `json:"ceiling"`
	// Fraction is (accuracy - 0.5) / (ceiling - 0.5).
	Fraction float64 `json:"fraction_of_ceiling"`
	// TrueAccuracy is the share of pairs whose true order it names.
	TrueAccuracy float64 `json:"true_accuracy"`
}

// prediction is a line of predictions.jsonl.
type prediction struct {
	PairID string  `json:"pair_id"`
	Model  string  `json:"model"`
	PLeft  float64 `json:"p_left"`
}

// ours is the name of this project's reward model in predictions.
const ours = "ours"

// readReward scores predictions of a data set's test pairs against its labels and its truth.
func readReward(data, predictions string) (RewardFigures, error) {
	rows, err := dataset.Pairs(data)
	if err != nil {
		return RewardFigures{}, err
	}
	truth := map[string]float64{}
	if err := readJSON(filepath.Join(data, TruthFile), &truth); err != nil {
		return RewardFigures{}, err
	}
	score := map[string]float64{}
	err = readLines(predictions, func(p prediction) error {
		if p.Model == ours {
			score[p.PairID] = p.PLeft - 0.5
		}
		return nil
	})
	if err != nil {
		return RewardFigures{}, err
	}
	var model, oracle, real Score
	for _, r := range rows {
		if r.Split != "test" {
			continue
		}
		s, ok := score[r.PairID]
		if !ok {
			return RewardFigures{}, fmt.Errorf("%s says nothing of pair %s", predictions, r.PairID)
		}
		d := truth[r.Left] - truth[r.Right]
		model.Add(s, r.LeftWins)
		oracle.Add(d, r.LeftWins)
		if d != 0 {
			real.Add(s, d > 0)
		}
	}
	f := RewardFigures{Pairs: int(model.N), Accuracy: model.Accuracy(), Ceiling: oracle.Accuracy(), TrueAccuracy: real.Accuracy()}
	f.Fraction = FractionOfCeiling(f.Accuracy, f.Ceiling)
	return f, nil
}

// FractionOfCeiling is how much of what can be known a model knows: 0 is a coin, 1 the truth. 0 where nothing can be known.
func FractionOfCeiling(accuracy, ceiling float64) float64 {
	if f := (accuracy - 0.5) / (ceiling - 0.5); ceiling > 0.5 && !math.IsNaN(f) {
		return f
	}
	return 0
}

// Score counts right answers; a tie is half a right one.
type Score struct {
	N     int64
	Right float64
}

// Add counts an answer: a positive score says that the left one wins.
func (s *Score) Add(score float64, leftWins bool) {
	s.N++
	switch {
	case score == 0:
		s.Right += 0.5
	case (score > 0) == leftWins:
		s.Right++
	}
}

// Accuracy is the share of right answers, 0 without any.
func (s *Score) Accuracy() float64 {
	if s.N == 0 {
		return 0
	}
	return s.Right / float64(s.N)
}
