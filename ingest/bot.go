package ingest

import (
	_ "embed"
	"regexp"
	"regexp/syntax"
	"strings"
)

// robotList is a public list, see its head. A new one is taken by hand: TestRobots and TestPeople say whether it still fits.
//
//go:embed robots.txt
var robotList string

// ofPeople are patterns of the list that browsers and apps of people match: libraries that Android apps and web pages are
// built with, browsers inside of apps, a browser of a tablet.
var ofPeople = map[string]bool{
	"okhttp": true, "axios": true, "Viber": true, "MetaIAB Facebook": true, "^Silk/": true, "Daum/": true,
}

// robotWords are what robots that no list knows call themselves, and libraries and browsers without a window. Lower case.
var robotWords = []string{
	"bot/", "bot;", "bot)", "robot", "crawler", "spider", "headless", "phantomjs", "selenium", "puppeteer", "playwright",
	"curl/", "wget/", "python-", "aiohttp", "httpx", "go-http-client", "java/", "libwww", "scrapy", "node-fetch",
}

// peoplesNames are names of devices that hold a word of robots.
var peoplesNames = strings.NewReplacer("cubot", "")

// robots are the patterns by a text that each contains: a look at every place of an agent costs a thousandth of one
// expression for all of them.
var robots = newAgents(robotList)

// agents finds patterns by the first bytes of the longest text that stands in them.
type agents map[[prefix]byte][]agent

// agent is a text, with the pattern that it is of unless it is the whole of it.
type agent struct {
	text    string
	pattern *regexp.Regexp
}

// prefix is how long a text is at least.
const prefix = 3

// shortest is the length from which on a text may begin inside of a word: shorter ones are found in build numbers of phones.
const shortest = 6

// newAgents reads a list, one pattern a line. The list is part of the program: a pattern without a text in it is a panic.
func newAgents(list string) agents {
	a := agents{}
	for line := range strings.Lines(list) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' || ofPeople[line] {
			continue
		}
		tree, err := syntax.Parse(line, syntax.Perl)
		if err != nil {
			panic(err)
		}
		ways := []*syntax.Regexp{tree}
		if tree.Op == syntax.OpAlternate {
			ways = tree.Sub
		}
		for _, way := range ways {
			r := agent{text: longestText(way)}
			if len(r.text) < prefix {
				panic("no text in " + line)
			}
			if way.Op != syntax.OpLiteral {
				r.pattern = regexp.MustCompile(way.String())
			}
			key := [prefix]byte([]byte(r.text))
			a[key] = append(a[key], r)
		}
	}
	return a
}

// longestText is the longest text that all matches of an expression contain.
func longestText(r *syntax.Regexp) (longest string) {
	switch r.Op {
	case syntax.OpLiteral:
		if r.Flags&syntax.FoldCase == 0 {
			return string(r.Rune)
		}
	case syntax.OpConcat, syntax.OpCapture, syntax.OpPlus:
		for _, sub := range r.Sub {
			if text := longestText(sub); len(text) > len(longest) {
				longest = text
			}
		}
	default: // alternatives, classes and what may be missing: no text is in all matches for certain
	}
	return longest
}

func (a agents) match(userAgent string) bool {
	for i := range len(userAgent) - prefix + 1 {
		for _, r := range a[[prefix]byte([]byte(userAgent[i:i+prefix]))] {
			switch {
			case !strings.HasPrefix(userAgent[i:], r.text):
			case r.pattern != nil:
				if r.pattern.MatchString(userAgent) {
					return true
				}
			case len(r.text) >= shortest || i == 0 || !alphanumeric(userAgent[i-1]):
				return true
			}
		}
	}
	return false
}

func alphanumeric(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' }

// IsBot says whether a user agent is a robot's. An empty one is not judged: an edge may leave it out.
func IsBot(userAgent string) bool {
	if robots.match(userAgent) {
		return true
	}
	agent := peoplesNames.Replace(strings.ToLower(userAgent))
	for _, w := range robotWords {
		if strings.Contains(agent, w) {
			return true
		}
	}
	return false
}
