package catalogue

import (
	"slices"

	"ctrloop/internal/imaging/grammar"
)

// fits says which scenes suit a department: where one would expect to meet its goods.
var fits = map[string][]grammar.Scene{
	"electronics":        {grammar.Desk, grammar.Studio, grammar.LivingRoom, grammar.Street},
	"toys and games":     {grammar.Playroom, grammar.LivingRoom, grammar.Beach},
	"accessories":        {grammar.Velvet, grammar.Marble, grammar.Street},
	"home":               {grammar.LivingRoom, grammar.OakTable, grammar.Marble},
	"fashion":            {grammar.Velvet, grammar.Street, grammar.Studio, grammar.Beach},
	"travel and outdoor": {grammar.Beach, grammar.Forest, grammar.Lake, grammar.Street},
	"beauty and health":  {grammar.Marble, grammar.Velvet, grammar.Studio},
	"tools":              {grammar.Workshop, grammar.Studio, grammar.Forest},
	"kitchen":            {grammar.OakTable, grammar.Marble, grammar.LivingRoom},
	"food and drink":     {grammar.OakTable, grammar.Marble, grammar.Beach, grammar.Forest},
	"sports":             {grammar.SportsHall, grammar.Forest, grammar.Lake, grammar.Beach},
	"vehicles":           {grammar.Street, grammar.Lake, grammar.Workshop},
	"music":              {grammar.Stage, grammar.LivingRoom, grammar.Studio},
	"office":             {grammar.Desk, grammar.OakTable, grammar.Studio},
}

// neutral suits a department that the table does not know (a catalogue of one's own).
var neutral = []grammar.Scene{grammar.Studio, grammar.Marble, grammar.LivingRoom}

// NumHarmonious is how many of the palettes count as harmonious with a product.
const NumHarmonious = 4

// Departments lists the departments that the fit table knows, sorted.
func Departments() []string {
	out := make([]string, 0, len(fits))
	for d := range fits {
		out = append(out, d)
	}
	slices.Sort(out)
	return out
}

// FitsOf lists the scenes that suit a department, the most typical first.
func FitsOf(department string) []grammar.Scene {
	if s, ok := fits[department]; ok {
		return s
	}
	return neutral
}

// Fits lists the scenes that suit the product's department.
func (p *Product) Fits() []grammar.Scene { return FitsOf(p.Department) }

// Harmonious lists the NumHarmonious palettes whose key colours go best with the product's mean colour,
// best first.
func (p *Product) Harmonious() []grammar.Palette {
	all := make([]grammar.Palette, grammar.NumPalettes)
	score := make([]float64, grammar.NumPalettes)
	for i := range all {
		all[i] = grammar.Palette(i)
		c := all[i].RGB()
		score[i] = Harmony(p.Mean, RGB{float64(c[0]) / 255, float64(c[1]) / 255, float64(c[2]) / 255})
	}
	slices.SortStableFunc(all, func(a, b grammar.Palette) int {
		if score[a] > score[b] {
			return -1
		} else if score[a] < score[b] {
			return 1
		}
		return 0
	})
	return all[:NumHarmonious]
}

// Matches says whether a background suits the product: the scene fits its department and the palette is
// harmonious. It is the truth behind the matching rate.
func (p *Product) Matches(d grammar.Description) bool {
	return slices.Contains(p.Fits(), d.Scene) && slices.Contains(p.Harmonious(), d.Palette)
}
