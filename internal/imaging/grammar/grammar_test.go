package grammar

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEveryDescriptionRoundTrips(t *testing.T) {
	for i := range NumDescriptions {
		d := FromIndex(i)
		got, unknown, ok := Parse(d.String())
		if !ok || got != d || len(unknown) != 0 || got.Index() != i {
			t.Fatalf("Parse(%q) = %v, %q, %v; want %v", d, got, unknown, ok, d)
		}
	}
}

func TestParse(t *testing.T) {
	defaults := Description{Studio, IvoryWhite, BrightStudio, NoProps}
	tests := []struct {
		text    string
		want    Description
		unknown []string
		ok      bool
	}{
		{"sunlit beach, deep teal tones, golden hour glow, silk ribbon", Description{Beach, DeepTeal, GoldenHour, Ribbon}, nil, true},
		{"  sunlit beach ,deep teal tones,golden hour glow, silk ribbon ", Description{Beach, DeepTeal, GoldenHour, Ribbon}, nil, true},
		{"deep teal tones, sunlit beach, golden hour glow, silk ribbon", Description{Beach, DeepTeal, GoldenHour, Ribbon}, nil, false},
		{
			"sunlit beach, deep teal, golden hour glow, silk ribbon",
			Description{Beach, IvoryWhite, GoldenHour, Ribbon},
			[]string{"deep teal"},
			false,
		},
		{"sunlit beach, deep teal tones, golden hour glow", Description{Beach, DeepTeal, GoldenHour, NoProps}, nil, false},
		{
			"sunlit beach, deep teal tones, golden hour glow, silk ribbon, a cat",
			Description{Beach, DeepTeal, GoldenHour, Ribbon},
			[]string{"a cat"},
			false,
		},
		{"sunlit beach, sunlit beach, golden hour glow, silk ribbon", Description{Beach, IvoryWhite, GoldenHour, Ribbon}, nil, false},
		{"", defaults, []string{""}, false},
	}
	for _, tt := range tests {
		got, unknown, ok := Parse(tt.text)
		if got != tt.want || ok != tt.ok || cmp.Diff(unknown, tt.unknown) != "" {
			t.Errorf("Parse(%q) = %v, %q, %v; want %v, %q, %v", tt.text, got, unknown, ok, tt.want, tt.unknown, tt.ok)
		}
	}
}
