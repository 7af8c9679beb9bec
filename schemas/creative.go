package schemas

import "time"

// Creative is one ad image: a product in front of a generated background. Topic creatives.v1, JSON,
// keyed by ID; the last record of a key is its state.
type Creative struct {
	ID           string  `json:"id"` // "c-" + 16 hex digits of the image's SHA-256
	Product      string  `json:"product"`
	Category     string  `json:"category"`
	ModelVersion string  `json:"model_version"` // the prompt model that wrote Description
	Description  string  `json:"description"`   // the background, in words
	Backend      string  `json:"backend"`       // what drew it: "scene", "diffusion", ...
	Seed         uint64  `json:"seed"`          // of the drawing
	Asset        string  `json:"asset"`         // digest of the PNG in the artifact store
	WidthPx      int     `json:"width_px"`
	HeightPx     int     `json:"height_px"`
	Valid        bool    `json:"valid"` // the description was well formed
	Prior        float64 `json:"prior"` // reward model's score in [0,1], 0.5 when there is none yet
	// Matching is how well the background suits the product, in [0,1], as MatchingJudge said. Scores of two judges do
	// not compare. No judge: nobody has scored it, and Matching means nothing.
	Matching      float64   `json:"matching"`
	MatchingJudge string    `json:"matching_judge,omitempty"`
	Blocked       string    `json:"blocked,omitempty"` // why it must not serve; empty: it may
	Created       time.Time `json:"created"`
}

// Pair is one preference: Chosen earned more clicks than Rejected, shown for the same product in the
// same cell. Topic pairs.v1, JSON, keyed by Product; ID is a digest of what it was made from, so that
// building a pair twice gives the same record.
type Pair struct {
	ID        string   `json:"id"`
	Product   string   `json:"product"`
	Category  string   `json:"category"`
	Placement string   `json:"placement"`
	FromMS    int64    `json:"from_ms"` // evidence span, event time
	ToMS      int64    `json:"to_ms"`
	Chosen    PairSide `json:"chosen"`
	Rejected  PairSide `json:"rejected"`
	Weight    float64  `json:"weight"` // 2 P(p_chosen > p_rejected) - 1 under the Beta posteriors, in [0,1]
	Left      bool     `json:"left"`   // the chosen one is shown on the left, drawn by hash
	Split     string   `json:"split"`  // "train" or "test", by product; "later": a training product on evidence after the training span
	Policy    string   `json:"policy"` // of pair building: "posterior", "caig"
}

// PairSide is the evidence on one creative of a pair.
type PairSide struct {
	Creative    string  `json:"creative"`
	Impressions int64   `json:"impressions"`
	Clicks      int64   `json:"clicks"`
	Mean        float64 `json:"mean"` // posterior mean of the click-through rate
}
