package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ctrloop/internal/catalogue"

	"github.com/chromedp/cdproto/cdp"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// tab is a page in a real Chromium, with everything that it complained about or asked another host for.
type tab struct {
	ctx context.Context
	mu  sync.Mutex
	bad []string
}

func (b *tab) complain(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad = append(b.bad, fmt.Sprintf(format, args...))
}

// check fails the test for any complaint since the last check, but for those that contain except.
func (b *tab) check(t *testing.T, except string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.bad {
		if except == "" || !strings.Contains(x, except) {
			t.Errorf("browser: %s", x)
		}
	}
	b.bad = nil
}

func openBrowser(t *testing.T, origin string, width, height int64) *tab {
	t.Helper()
	bin := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			bin = p
			break
		}
	}
	if bin == "" {
		t.Skip("no Chromium on the PATH (Debian: apt-get install chromium)")
	}
	opts := append(
		chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(bin),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.WSURLReadTimeout(60*time.Second),
	)
	alloc, stop := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	b := &tab{ctx: ctx}
	err := chromedp.Listen(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *network.EventRequestWillBeSent:
			if u := ev.Request.URL; !strings.HasPrefix(u, origin+"/") && u != "about:blank" {
				b.complain("request to %s", u)
			}
		case *network.EventLoadingFailed:
			if !ev.Canceled {
				b.complain("loading failed: %s", ev.ErrorText)
			}
		case *runtime.EventExceptionThrown:
			b.complain("exception: %s", ev.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			b.complain("console.%s", ev.Type)
		case *cdplog.EventEntryAdded:
			if ev.Entry.Level == cdplog.EntryLevelError || ev.Entry.Level == cdplog.EntryLevelWarning {
				b.complain("%s: %s", ev.Entry.Level, ev.Entry.Text)
			}
		}
	})
	_, err2 := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	_, err3 := chromedp.Call(ctx, cdplog.Enable, cdp.Empty{})
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	b.ctx, cancel = context.WithTimeout(ctx, 2*time.Minute) // not the first call's context: its end would be the browser's
	t.Cleanup(cancel)
	b.do(t, chromedp.EmulateViewport(width, height))
	return b
}

func (b *tab) do(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

func (b *tab) text(t *testing.T, sel string) string {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](fmt.Sprintf("document.querySelector(%q)?.innerText ?? 'NOT THERE'", sel)))
	if err != nil {
		t.Fatalf("%s: %v", sel, err)
	}
	return strings.Join(strings.Fields(v), " ")
}

func eval[T any](t *testing.T, b *tab, js string) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	return v
}

// until waits for a condition in the page.
func (b *tab) until(t *testing.T, js string) {
	t.Helper()
	if _, err := chromedp.Run(b.ctx, chromedp.Poll[bool]("!!("+js+")", chromedp.WithPollingInterval(50*time.Millisecond),
		chromedp.WithPollingTimeout(30*time.Second))); err != nil {
		t.Fatalf("waiting for %s: %v", js, err)
	}
}

// shoot saves a picture of the page when CTRLOOP_SCREENSHOTS names a folder.
func (b *tab) shoot(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("CTRLOOP_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// serve starts the console beside the creatives' images, as the composition root does.
func serve(t *testing.T, src Source, pictures http.Handler) (*httptest.Server, *Service) {
	t.Helper()
	s := newService(t, src, func(c *Config) { c.Refresh = 100 * time.Millisecond })
	mux := http.NewServeMux()
	mux.Handle("/", s.Handler())
	if pictures != nil {
		mux.Handle("/v1/creatives/", pictures)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		srv.CloseClientConnections() // live streams
		srv.Close()
	})
	return srv, s
}

func TestPageInChromium(t *testing.T) {
	cat := catalogue.Embedded()
	o := sample(t, cat)
	src := &fixed{o: o}
	srv, _ := serve(t, src, images(t, cat, o))
	b := openBrowser(t, srv.URL, 1600, 1000)
	b.do(t, chromedp.Navigate(srv.URL+"/"))
	b.until(t, `document.documentElement.dataset.painted`)
	b.until(t, `[...document.images].length === 15 && [...document.images].every(i => i.complete && i.naturalWidth === 256)`)
	t.Logf("figures on the page after %s ms, first paint after %.0f ms", eval[string](t, b, `document.documentElement.dataset.painted`),
		eval[float64](t, b, `performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? -1`))

	r := o.Rollout
	for sel, want := range map[string]string{
		".headline .big":                  "Newest click the live model has learned from: 14 min ago",
		".headline .under":                "clicked 2026-03-02 18:26:00 UTC",
		"#stage-ingest .rate":             "1,284",
		"#stage-join dl":                  "5,784",
		"#stage-join dl ":                 "0.8 s",
		"#stage-serve .state":             "degraded",
		"#stage-train .state":             "idle",
		"#champion .who":                  "prompt-2f9be81c07d5",
		"#champion .rows":                 "3.61 % [3.56 to 3.67], 14,533 of 402k",
		"#lift":                           fmt.Sprintf("+%.1f %%", 100**r.Lift),
		".arms tr.control":                fmt.Sprintf("%.2f", 100**r.Control.CTR),
		".arms tr.treatment":              fmt.Sprintf("%.2f to %.2f", 100**r.Treatment.Low, 100**r.Treatment.High),
		".verdict":                        "hold undecided",
		".steps .now":                     "50 %",
		"#ledger-sum":                     "closed 1,214,880 received",
		"#events .log":                    "model promoted prompt",
		".alerts":                         "Model server embedded-1 is not answering",
		"#creatives .note":                "not an A/B result",
		"#creatives li .num":              "of",
		"#live":                           "live",
		"#ctr .note":                      "mature impressions",
		"#creatives li:last-child .title": o.Creatives[15].Title,
		"#creatives li .stopped":          "blocked by ana: the price is wrong",
	} {
		if got := b.text(t, strings.TrimSpace(sel)); !strings.Contains(got, want) {
			t.Errorf("%s shows %q, want %q in it", sel, got, want)
		}
	}
	// The whisker lies where the numbers say: its dot between its ends, the zero line where zero is.
	if !eval[bool](
		t,
		b,
		`(() => { const x = s => document.querySelector(s).getBoundingClientRect();
		const l = x('.axis .line'), d = x('.axis .dot'), z = x('.axis .zero'), t = x('.axis .t.z');
		const m = d.left + d.width / 2; return l.left < m && m < l.right && Math.abs(z.left + z.width / 2 - (t.left + t.width / 2)) < 1.5 })()`,
	) {
		t.Error("the lift's whisker is not where its numbers are")
	}
	if eval[bool](t, b, `document.documentElement.scrollWidth > innerWidth`) {
		t.Error("the page is wider than the window")
	}
	b.check(t, "")
	b.shoot(t, "console.png")

	t.Run("live update", func(t *testing.T) {
		eval[bool](t, b, `(document.querySelector("#creatives img").kept = true)`)
		o.Freshness.AgeSeconds = new(61.0 * 60)
		src.set(o, nil)
		b.until(t, `document.querySelector("#freshness").textContent === "61 min ago"`)
		if !eval[bool](t, b, `document.querySelector("#freshness").classList.contains("changed")`) {
			t.Error("the change does not show")
		}
		if !eval[bool](t, b, `document.querySelector("#creatives img").kept === true`) {
			t.Error("an update threw the images away")
		}
	})
	t.Run("keyboard", func(t *testing.T) {
		b.do(t, chromedp.KeyEvent(kb.Tab))
		if got := eval[string](t, b, `document.activeElement.className`); got != "skip" {
			t.Errorf("the first stop is %q, want the skip link", got)
		}
		b.do(t, chromedp.KeyEvent("t"), chromedp.KeyEvent("p"))
		if got := eval[string](t, b, `document.documentElement.dataset.theme + location.search`); got != "dark?paused=1" {
			t.Errorf("after T and P: %q", got)
		}
		b.shoot(t, "console-dark-paused.png")
		b.do(t, chromedp.KeyEvent("p"), chromedp.Focus(chromedp.CSS(".chart")), chromedp.KeyEvent(kb.ArrowLeft))
		if got := b.text(t, ".readout"); !strings.Contains(got, "2026-03-02 18:25:00 UTC") || !strings.Contains(got, " of ") {
			t.Errorf("the cursor reads %q", got)
		}
		b.until(t, `document.querySelector("#live").textContent === "● live"`)
		b.shoot(t, "console-dark.png")
	})
	t.Run("stale", func(t *testing.T) {
		src.set(Overview{}, errors.New("warehouse does not answer"))
		b.until(t, `document.documentElement.classList.contains("stale")`)
		if got := b.text(t, "#bar"); !strings.Contains(got, "warehouse does not answer") || !strings.Contains(got, " old") {
			t.Errorf("the bar says %q", got)
		}
		if got := b.text(t, ".headline .big"); !strings.Contains(got, "61 min ago") {
			t.Errorf("the last figures are gone: %q", got)
		}
	})
	b.check(t, "")
}

func TestEmptyPageInChromium(t *testing.T) {
	srv, _ := serve(t, &fixed{o: Overview{Time: wall, Freshness: Freshness{Why: "The champion is the base model."}}}, nil)
	b := openBrowser(t, srv.URL, 1280, 900)
	b.do(t, chromedp.Navigate(srv.URL+"/"))
	b.until(t, `document.documentElement.dataset.painted`)
	for sel, want := range map[string]string{
		".headline":    "has not learned from a click yet The champion is the base model. The first cycle begins",
		"#stage-pair":  "stopped",
		"#rollout":     "ctrloop experiment create",
		"#ctr":         "POST /v1/events",
		"#champion":    "ctrloop status",
		"#ledger":      "POST /v1/events",
		"#events":      "Nothing has been decided yet",
		"#creatives":   "No ad image has been made yet",
		"#stage-serve": "–",
	} {
		if got := b.text(t, sel); !strings.Contains(got, want) {
			t.Errorf("%s shows %q, want %q in it", sel, got, want)
		}
	}
	b.check(t, "")
	b.shoot(t, "console-empty.png")
	b.do(t, chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile))
	b.until(t, `document.documentElement.scrollWidth <= innerWidth`)
}
