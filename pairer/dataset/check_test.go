package dataset

import (
	"strings"
	"testing"

	"ctrloop/schemas"
)

func pair(id, product, chosen, rejected, split string) schemas.Pair {
	return schemas.Pair{
		ID: id, Product: product, Split: split, Weight: 0.5,
		Chosen: schemas.PairSide{Creative: chosen}, Rejected: schemas.PairSide{Creative: rejected},
	}
}

func row(id, product, picture string) CreativeRow {
	return CreativeRow{Creative: id, Product: product, Caption: product, ImagePNG: []byte(picture), PosteriorMean: 0.03}
}

var shop = []CreativeRow{
	row("a1", "a", "1"), row("a2", "a", "2"), row("b1", "b", "3"), row("b2", "b", "4"), row("x1", "x", "5"), row("x2", "x", "6"),
}

func TestWriteRefusesPairsThatLie(t *testing.T) {
	good := []schemas.Pair{pair("p", "a", "a1", "a2", "train"), pair("q", "x", "x1", "x2", "test")}
	if m, err := Write(t.TempDir(), good, shop, Manifest{}); err != nil || m.Pairs != 2 || m.Leaked != 0 {
		t.Fatalf("an honest data set: %+v, %v", m, err)
	}
	for told, bad := range map[string]schemas.Pair{
		"creative b1 of b":                        pair("r", "x", "x1", "b1", "test"),
		"creative x1 of x":                        pair("r", "b", "x1", "x2", "train"),
		"against itself":                          pair("r", "b", "b1", "b1", "train"),
		"there twice":                             good[0],
		"creative c9, which is not in":            pair("r", "b", "b1", "c9", "train"),
		"x is in the training and in the test sp": pair("r", "x", "x2", "x1", "train"),
	} {
		_, err := Write(t.TempDir(), append([]schemas.Pair{bad}, good...), shop, Manifest{})
		if err == nil || !strings.Contains(err.Error(), told) {
			t.Errorf("want %q, got %v", told, err)
		}
	}
}

// A shop that lists one article under two ids: one of them is learned from, so the other's pictures are no exam. The loop
// goes on without those pairs, and the manifest says how many.
func TestTestPairsWithATrainingProductsPictureAreLeftOut(t *testing.T) {
	twice := append([]CreativeRow{row("y1", "y", "1"), row("y2", "y", "7"), row("y3", "y", "8")}, shop...)
	ps := []schemas.Pair{
		pair("p", "a", "a1", "a2", "train"), pair("s", "x", "x1", "x2", "test"),
		pair("q", "y", "y1", "y2", "test"), pair("r", "y", "y3", "y2", "test"),
	}
	dir := t.TempDir()
	m, err := Write(dir, ps, twice, Manifest{})
	if err != nil || m.Pairs != 3 || m.Leaked != 1 || m.Test != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	rows, err := Pairs(dir)
	if err != nil || len(rows) != 3 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
}
