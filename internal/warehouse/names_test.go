package warehouse

import (
	"fmt"
	"testing"
)

// S10: a block that never runs empty forgets the names that no row has any more, and the rows that are left keep theirs.
func TestNamesThatNoRowHasAreForgotten(t *testing.T) {
	b := &LabelBlock{}
	row := func(campaign, product string) {
		var l Label
		l.Names[Campaign] = b.Name(Campaign, []byte(campaign))
		l.Names[Product] = b.Name(Product, []byte(product))
		b.Rows = append(b.Rows, l)
	}
	forgotten, most := 0, 0
	for block := range 20 {
		for i := range 50_000 {
			row(fmt.Sprintf("%0100d", block*50_000+i), fmt.Sprint("product-", i%7))
		}
		most = max(most, b.Names())
		forgotten += b.Drop(len(b.Rows) - 3) // the last group of a watermark stays
		for i, r := range b.Rows {
			want := fmt.Sprintf("%0100d", block*50_000+49_997+i)
			if got := b.names[Campaign].value(r.Names[Campaign]); got != want {
				t.Fatalf("block %d, row %d: campaign %q, want %q", block, i, got, want)
			}
			if got, want := b.names[Product].value(r.Names[Product]), fmt.Sprint("product-", (49_997+i)%7); got != want {
				t.Fatalf("block %d, row %d: product %q, want %q", block, i, got, want)
			}
		}
	}
	if most > maxNames+50_000+3+7 {
		t.Errorf("%d names at once, with at most 50,003 rows", most)
	}
	if forgotten < 1_000_000-maxNames-50_000-3 {
		t.Errorf("%d of 1,000,000 names forgotten", forgotten)
	}
}

// Few names are kept without looking: they come again.
func TestFewNamesAreKept(t *testing.T) {
	b := &LabelBlock{}
	for i := range 1000 {
		var l Label
		l.Names[Product] = b.Name(Product, fmt.Append(nil, i))
		b.Rows = append(b.Rows, l)
	}
	if n := b.Drop(1000); n != 0 || b.Names() != 1000 {
		t.Errorf("%d forgotten, %d known", n, b.Names())
	}
}
