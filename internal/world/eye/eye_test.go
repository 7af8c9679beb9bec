package eye

import (
	"testing"

	"ctrloop/internal/catalogue"
)

// Fresh seeds, all words of the grammar, every product: the world must see what is there.
func TestAccuracyOnFreshCreatives(t *testing.T) {
	fresh := Draw(catalogue.Embedded().Products(), 500, 0xf4e54)
	if a := Default().Accuracy(fresh); a < 0.95 {
		t.Errorf("accuracy %.3f on fresh creatives, want at least 0.95: the renderer has changed, run go generate ./internal/world/eye", a)
	} else {
		t.Logf("accuracy %.3f", a)
	}
}

// An eye that saw little must do worse than the shipped one and better than chance: the figure above can fail.
func TestLearnFromLittle(t *testing.T) {
	products := catalogue.Embedded().Products()
	fresh := Draw(products, 200, 3)
	blind := new(Eye).Accuracy(fresh)
	small := Learn(Draw(products, 256, 4), 4, 4).Accuracy(fresh)
	if blind > 0.2 {
		t.Errorf("an eye without weights names %.2f of the scenes", blind)
	}
	if small < 0.4 {
		t.Errorf("after 256 pictures %.2f", small)
	}
}

func TestScenesIsADistribution(t *testing.T) {
	rgb, alpha := make([]uint8, 3*Px*Px), make([]uint8, Px*Px)
	for i := range alpha {
		alpha[i] = 255 // the product covers everything
	}
	var sum float64
	for _, p := range Default().Scenes(rgb, alpha) {
		sum += p
	}
	if sum < 0.999 || sum > 1.001 {
		t.Errorf("probabilities sum to %v", sum)
	}
}

func TestWeightsOfAnotherShapeAreRefused(t *testing.T) {
	if _, err := decode(weights[:len(weights)-4]); err == nil {
		t.Error("a short weights file is accepted")
	}
	e, err := decode(weights)
	if err != nil || string(e.Encode()) != string(weights) {
		t.Errorf("weights do not round-trip: %v", err)
	}
}
