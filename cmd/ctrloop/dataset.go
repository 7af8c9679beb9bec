package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/internal/artifact"
	"ctrloop/pairer/dataset"
	"ctrloop/serving"
)

// DatasetCmd is `ctrloop dataset`.
type DatasetCmd struct {
	Ls     DatasetLsCmd     `cmd:"" help:"List the data sets, the newest first, and what became of them."`
	Show   DatasetShowCmd   `cmd:"" help:"Show what a data set says of itself."`
	Verify DatasetVerifyCmd `cmd:"" help:"Read a data set whole: checksums, counts, and that nothing of the exam was learned from."`
	Diff   DatasetDiffCmd   `cmd:"" help:"Compare two data sets: which preferences are new, gone, stronger, turned around."`
	Export DatasetExportCmd `cmd:"" help:"Write a data set for another program: Parquet, TRL, ms-swift, LLaVA."`
}

// DatasetLsCmd is `ctrloop dataset ls`.
type DatasetLsCmd struct{ instanceFlags }

// Run lists them.
func (c *DatasetLsCmd) Run(ctx context.Context, out *output) error {
	raw, err := c.at(ctx, http.MethodGet, "/v1/datasets", nil)
	if err != nil {
		return err
	}
	if c.JSON {
		return printRaw(out, raw)
	}
	var got struct {
		Datasets []serving.DatasetRow `json:"datasets"`
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "data set\tpairs\tproducts\tfrom\tto\tpolicy\tbuilt\tversions\tfailed")
	for _, d := range got.Datasets {
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", shortDigest(d.Digest), d.Pairs, d.Products, utc(time.UnixMilli(d.FromMS)),
			utc(time.UnixMilli(d.ToMS)), d.Policy, utc(time.UnixMilli(d.BuiltMS)), strings.Join(d.Versions, " "), strings.Join(d.Failed, " "))
	}
	return t.Flush()
}

func shortDigest(d string) string { return d[:min(12, len(d))] }

// datasetFlags say where data sets lie.
type datasetFlags struct {
	Dir  string `help:"Folder of the instance, whose artifacts have the data sets." default:"ctrloop-data" env:"CTRLOOP_DIR" type:"path"`
	JSON bool   `name:"json" help:"Print JSON."`
}

// find returns the folder of a data set that is named by a path or by the beginning of its digest; digest is empty for a path.
func (f datasetFlags) find(name string) (dir, digest string, err error) {
	if _, err := os.Stat(filepath.Join(name, dataset.ManifestFile)); err == nil {
		return name, "", nil
	}
	folder := filepath.Join(f.Dir, "artifacts")
	hint := "`ctrloop dataset ls` lists them; name the instance's folder with --dir, or the folder of the data set itself"
	if _, err := os.Stat(folder); err != nil {
		return "", "", withHint(fmt.Errorf("find data set %s: %w", name, err), hint)
	}
	store, err := artifact.Open(folder)
	if err != nil {
		return "", "", err
	}
	found, err := store.Find(name)
	if err != nil {
		return "", "", withHint(fmt.Errorf("find data set: %w", err), hint)
	}
	found = slices.DeleteFunc(found, func(d string) bool {
		_, err := os.Stat(filepath.Join(store.Path(d), dataset.PairsFile))
		return err != nil
	})
	switch len(found) {
	case 0:
		return "", "", withHint(fmt.Errorf("no data set %q in %s", name, folder), hint)
	case 1:
		return store.Path(found[0]), found[0], nil
	}
	return "", "", withHint(fmt.Errorf("%d data sets begin with %q: %s", len(found), name, strings.Join(found, ", ")), "give more digits")
}

// DatasetShowCmd is `ctrloop dataset show`.
type DatasetShowCmd struct {
	datasetFlags
	Name string `arg:"" help:"The beginning of its digest, or its folder."`
}

// Run shows it.
func (c *DatasetShowCmd) Run(out *output) error {
	dir, digest, err := c.find(c.Name)
	if err != nil {
		return err
	}
	m, err := dataset.ReadManifest(dir)
	if err != nil {
		return err
	}
	if c.JSON {
		return out.printJSON(m)
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "data set\t%s\n", cmp.Or(digest, dir))
	fmt.Fprintf(t, "evidence\t%s to %s UTC, event time\n", utc(time.UnixMilli(m.FromMS)), utc(time.UnixMilli(m.ToMS)))
	fmt.Fprintf(t, "pairs\t%d of %d products, %d creatives; policy %s\n", m.Pairs, m.Products, m.Creatives, m.Policy)
	fmt.Fprintf(t, "split\t%d training, worth %.0f sure comparisons; %d test, %d later\n", m.Train, m.Effective, m.Test, m.Later)
	fmt.Fprintf(t, "left out\t%d test pairs whose picture a training product has\n", m.Leaked)
	for _, name := range slices.Sorted(maps.Keys(m.SHA256)) {
		fmt.Fprintf(t, "%s\tSHA-256 %s\n", name, m.SHA256[name])
	}
	return t.Flush()
}

// DatasetVerifyCmd is `ctrloop dataset verify`.
type DatasetVerifyCmd struct {
	datasetFlags
	Name string `arg:"" help:"The beginning of its digest, or its folder."`
}

// Run verifies it.
func (c *DatasetVerifyCmd) Run(out *output) error {
	dir, digest, err := c.find(c.Name)
	if err != nil {
		return err
	}
	if digest != "" {
		got, err := artifact.DigestDir(dir)
		if err != nil {
			return err
		}
		if got != digest {
			return withHint(fmt.Errorf("data set %s has the content of %s", digest, got), "restore it from a backup, or train on another one")
		}
	}
	if err := dataset.Verify(dir); err != nil {
		return withHint(err, "train on another one; the pairer makes the next one from the evidence anew")
	}
	if c.JSON {
		return out.printJSON(map[string]any{"ok": true, "digest": digest})
	}
	_, err = fmt.Fprintf(out.stdout, "%s is what it says: checksums, counts, and no product or picture on both sides of the split\n",
		cmp.Or(digest, dir))
	return err
}

// DatasetDiffCmd is `ctrloop dataset diff`.
type DatasetDiffCmd struct {
	datasetFlags
	Before string `arg:"" help:"The first one: the beginning of its digest, or its folder."`
	After  string `arg:"" help:"The second one."`
}

// Run compares them.
func (c *DatasetDiffCmd) Run(out *output) error {
	var sets [2]dataset.Set
	for i, name := range []string{c.Before, c.After} {
		dir, _, err := c.find(name)
		if err != nil {
			return err
		}
		if sets[i], err = dataset.Read(dir); err != nil {
			return err
		}
	}
	d := dataset.Diff(sets[0], sets[1])
	if c.JSON {
		return out.printJSON(d)
	}
	fmt.Fprintf(out.stdout, "pairs: %d new, %d gone, %d turned around, %d of another weight, %d in another split\n",
		d.NewPairs, d.GonePairs, d.TurnedPairs, d.MovedPairs, d.OtherSplit)
	fmt.Fprintf(out.stdout, "creatives: %d new, %d gone, %d with another picture or description\n", d.NewCreatives, d.GoneCreatives, d.Redrawn)
	fmt.Fprintf(out.stdout, "information: %.1f sure comparisons\n", d.Information)
	if len(d.Largest) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(out.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "product\tplacement\ta\tb\ta is better, before\tafter")
	for _, p := range d.Largest {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%+.2f\t%+.2f\n", p.Product, p.Placement, p.A, p.B, p.Before, p.After)
	}
	return t.Flush()
}

// DatasetExportCmd is `ctrloop dataset export`.
type DatasetExportCmd struct {
	datasetFlags
	Name   string         `arg:"" help:"The beginning of its digest, or its folder."`
	Format dataset.Format `help:"Whose format: ${enum}." enum:"parquet,trl,swift,llava" required:"" placeholder:"FORMAT"`
	Out    string         `help:"Folder to write, new or empty." required:"" type:"path" placeholder:"DIR"`
}

// Run exports it.
func (c *DatasetExportCmd) Run(out *output) error {
	dir, _, err := c.find(c.Name)
	if err != nil {
		return err
	}
	e, err := dataset.Export(dir, c.Out, c.Format)
	if err != nil {
		return err
	}
	if c.JSON {
		return out.printJSON(e)
	}
	for _, split := range slices.Sorted(maps.Keys(e.Rows)) {
		fmt.Fprintf(out.stdout, "%s: %d rows\n", split, e.Rows[split])
	}
	if e.Same > 0 {
		fmt.Fprintf(out.stdout, "left out: %d pairs whose creatives have the same description\n", e.Same)
	}
	_, err = fmt.Fprintf(out.stdout, "written to %s: %s\n", c.Out, strings.Join(e.Files, ", "))
	return err
}
