// Package dataset is the form in which pairs travel to training: a folder with two Arrow tables and a
// manifest. What is in it depends on the pairs alone, so that the digest of the folder names the data.
package dataset

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ctrloop/internal/columnar"
	"ctrloop/schemas"
)

// Files of a data set.
const (
	PairsFile     = "pairs.arrow"
	CreativesFile = "creatives.arrow"
	ManifestFile  = "manifest.json"
	// RecordsFile has the pairs as they are published on pairs.v1, one JSON object a line, where the pairer made the data set.
	RecordsFile = "pairs.jsonl"
)

// PairRow is a row of pairs.arrow: two creatives of one product, side by side.
type PairRow struct {
	PairID           string  `arrow:"pair_id"`
	Product          string  `arrow:"product"`
	Placement        string  `arrow:"placement"`
	Left             string  `arrow:"left"`
	Right            string  `arrow:"right"`
	LeftWins         bool    `arrow:"left_wins"`
	Weight           float64 `arrow:"weight"`
	LeftImpressions  int64   `arrow:"left_impressions"`
	LeftClicks       int64   `arrow:"left_clicks"`
	RightImpressions int64   `arrow:"right_impressions"`
	RightClicks      int64   `arrow:"right_clicks"`
	Split            string  `arrow:"split"`
}

// CreativeRow is a row of creatives.arrow: everything that a reward model may see of a creative, its
// evidence over all placements, and its picture at the size of the models' view.
type CreativeRow struct {
	Creative      string  `arrow:"creative"`
	Product       string  `arrow:"product"`
	Caption       string  `arrow:"caption"`
	Description   string  `arrow:"description"`
	Seed          uint64  `arrow:"seed"`
	ImagePNG      []byte  `arrow:"image_png"`
	Impressions   int64   `arrow:"impressions"`
	Clicks        int64   `arrow:"clicks"`
	PosteriorMean float64 `arrow:"posterior_mean"`
}

// Manifest says what the folder holds and how it came about.
type Manifest struct {
	Schema    int               `json:"schema"` // 1
	Pairs     int               `json:"pairs"`
	Train     int               `json:"train"`
	Test      int               `json:"test"`
	Later     int               `json:"later,omitempty"`  // pairs of training products on evidence after the training span
	Leaked    int               `json:"leaked,omitempty"` // test pairs left out: a training product has one of their pictures
	Effective float64           `json:"effective"`        // sum of training weights
	Creatives int               `json:"creatives"`
	Products  int               `json:"products"`
	FromMS    int64             `json:"from_ms"` // span of the evidence, event time
	ToMS      int64             `json:"to_ms"`
	Policy    string            `json:"policy"`
	Seed      uint64            `json:"seed"`
	SHA256    map[string]string `json:"sha256"` // of each table
}

// Rows puts pairs side by side.
func Rows(pairs []schemas.Pair) []PairRow {
	rows := make([]PairRow, len(pairs))
	for i, p := range pairs {
		l, r := p.Rejected, p.Chosen
		if p.Left {
			l, r = r, l
		}
		rows[i] = PairRow{
			PairID: p.ID, Product: p.Product, Placement: p.Placement, Left: l.Creative, Right: r.Creative, LeftWins: p.Left, Weight: p.Weight,
			LeftImpressions: l.Impressions, LeftClicks: l.Clicks, RightImpressions: r.Impressions, RightClicks: r.Clicks, Split: p.Split,
		}
	}
	return rows
}

// Write fills an empty folder; m's counts and checksums are computed here. Pairs that lie are an error, see honest.
func Write(dir string, pairs []schemas.Pair, creatives []CreativeRow, m Manifest) (Manifest, error) {
	pairs, leaked, err := honest(pairs, creatives)
	if err != nil {
		return m, err
	}
	m.Leaked = leaked
	m.Schema, m.Pairs, m.Creatives, m.SHA256 = 1, len(pairs), len(creatives), map[string]string{}
	m.Train, m.Test, m.Later, m.Effective = 0, 0, 0, 0
	products := map[string]bool{}
	for _, p := range pairs {
		products[p.Product] = true
		switch p.Split {
		case splitTrain:
			m.Train++
			m.Effective += p.Weight
		case splitLater:
			m.Later++
		default:
			m.Test++
		}
	}
	m.Products = len(products)
	if err := columnar.Write(filepath.Join(dir, PairsFile), Rows(pairs)); err != nil {
		return m, err
	}
	if err := columnar.Write(filepath.Join(dir, CreativesFile), creatives); err != nil {
		return m, err
	}
	for _, f := range []string{PairsFile, CreativesFile} {
		b, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			return m, fmt.Errorf("write data set: %w", err)
		}
		sum := sha256.Sum256(b)
		m.SHA256[f] = hex.EncodeToString(sum[:])
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, fmt.Errorf("write data set: %w", err)
	}
	return m, os.WriteFile(filepath.Join(dir, ManifestFile), append(b, '\n'), 0o644)
}

// Pairs reads the pair table of a data set.
func Pairs(dir string) ([]PairRow, error) {
	return columnar.Read[PairRow](filepath.Join(dir, PairsFile))
}

// WriteRecords adds the pairs as they are published.
func WriteRecords(dir string, pairs []schemas.Pair) error {
	var b bytes.Buffer
	lines := json.NewEncoder(&b)
	for _, p := range pairs {
		if err := lines.Encode(p); err != nil {
			return fmt.Errorf("write data set: pair %s: %w", p.ID, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, RecordsFile), b.Bytes(), 0o644)
}

// Records reads what WriteRecords wrote; none of a data set that was made elsewhere.
func Records(dir string) ([]schemas.Pair, error) {
	raw, err := os.ReadFile(filepath.Join(dir, RecordsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read data set: %w", err)
	}
	var out []schemas.Pair
	for lines := json.NewDecoder(bytes.NewReader(raw)); lines.More(); {
		var p schemas.Pair
		if err := lines.Decode(&p); err != nil {
			return nil, fmt.Errorf("read data set: %s: %w", RecordsFile, err)
		}
		out = append(out, p)
	}
	return out, nil
}
