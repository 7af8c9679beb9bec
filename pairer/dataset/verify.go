package dataset

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"ctrloop/internal/columnar"
)

// ErrInvalid is what Verify's problems wrap.
var ErrInvalid = errors.New("the data set is not what its manifest says")

// Set is a data set in memory.
type Set struct {
	Manifest  Manifest
	Pairs     []PairRow
	Creatives []CreativeRow
}

// Read reads a folder. It does not check what it reads, see Verify.
func Read(dir string) (s Set, err error) {
	if s.Manifest, err = ReadManifest(dir); err != nil {
		return s, err
	}
	if s.Pairs, err = Pairs(dir); err != nil {
		return s, err
	}
	s.Creatives, err = columnar.Read[CreativeRow](filepath.Join(dir, CreativesFile))
	return s, err
}

// ReadManifest reads what a data set says of itself.
func ReadManifest(dir string) (m Manifest, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		return m, fmt.Errorf("read data set: %w", err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("read data set: %s: %w", ManifestFile, err)
	}
	if m.Schema != 1 {
		return m, fmt.Errorf("read data set: schema %d: this program reads schema 1", m.Schema)
	}
	return m, nil
}

// Verify reads a data set whole and returns every problem, joined, each of which wraps ErrInvalid: checksums of its tables, counts,
// weights, pairs that their creatives contradict, and products or pictures that are on both sides of the split. Another error says that
// it could not be read.
func Verify(dir string) error {
	m, err := ReadManifest(dir)
	if err != nil {
		return err
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...))
	}
	for _, name := range []string{PairsFile, CreativesFile} {
		sum, err := sumOf(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("read data set: %w", err)
		}
		if sum != m.SHA256[name] {
			bad("%s has SHA-256 %s, the manifest %q", name, sum, m.SHA256[name])
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // what is in them is anybody's guess
	}
	s, err := Read(dir)
	if err != nil {
		return err
	}
	count := func(what string, got, want int) {
		if got != want {
			bad("%d %s, the manifest says %d", got, what, want)
		}
	}
	splits, products := map[string]int{}, map[string]bool{}
	effective := 0.0
	for _, p := range s.Pairs {
		splits[p.Split]++
		products[p.Product] = true
		if p.Split == splitTrain {
			effective += p.Weight
		}
	}
	count("pairs", len(s.Pairs), m.Pairs)
	count("training pairs", splits[splitTrain], m.Train)
	count("test pairs", splits[splitTest], m.Test)
	count("later pairs", splits[splitLater], m.Later)
	count("creatives", len(s.Creatives), m.Creatives)
	count("products", len(products), m.Products)
	if math.Abs(effective-m.Effective) > 1e-6*max(1, m.Effective) {
		bad("training weights add up to %g, the manifest says %g", effective, m.Effective)
	}
	for _, problem := range s.problems() {
		bad("%s", problem)
	}
	return errors.Join(errs...)
}

// The splits.
const (
	splitTrain = "train"
	splitTest  = "test"
	splitLater = "later"
)

// problems are what pairs and creatives say against each other, and what is on both sides of the split.
func (s Set) problems() (out []string) {
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	by := map[string]*CreativeRow{}
	for i := range s.Creatives {
		c := &s.Creatives[i]
		if by[c.Creative] != nil {
			bad("creative %s is there twice", c.Creative)
		}
		by[c.Creative] = c
		if c.Clicks < 0 || c.Clicks > c.Impressions {
			bad("creative %s has %d clicks of %d impressions", c.Creative, c.Clicks, c.Impressions)
		}
	}
	out = append(out, contradictions(s.Pairs, by)...)
	learned := map[string]bool{}
	for _, p := range s.Pairs {
		learned[p.Product] = learned[p.Product] || p.Split == splitTrain
		if p.Split != splitTrain && p.Split != splitTest && p.Split != splitLater {
			bad("pair %s is of a split %q", p.PairID, p.Split)
		}
		if !(p.Weight > 0 && p.Weight <= 1) {
			bad("pair %s weighs %g: want more than 0, at most 1", p.PairID, p.Weight)
		}
	}
	pictures := map[[sha256.Size]byte]string{} // of products that are learned from
	for _, c := range s.Creatives {
		if learned[c.Product] {
			pictures[sha256.Sum256(c.ImagePNG)] = c.Product
		}
	}
	for _, p := range s.Pairs {
		if p.Split != splitTest {
			continue
		}
		if learned[p.Product] {
			bad("product %s of test pair %s is learned from", p.Product, p.PairID)
			continue
		}
		for _, id := range []string{p.Left, p.Right} {
			if c := by[id]; c != nil && pictures[sha256.Sum256(c.ImagePNG)] != "" {
				bad("test pair %s shows a picture that training product %s has, too", p.PairID, pictures[sha256.Sum256(c.ImagePNG)])
			}
		}
	}
	return out
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
