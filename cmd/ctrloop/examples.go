package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// example is a command line, with what it is for.
type example struct{ what, line string }

// examples of every command, by its name; its help ends with them, and a test parses them. Quotes are single ones.
var examples = map[string][]example{
	"setup": {
		{"everything that an embedded run needs", "ctrloop setup"},
		{"what is there, and what would be fetched", "ctrloop setup --check"},
		{"where the warehouse is a server of its own", "ctrloop setup --no-engine"},
	},
	"demo": {
		{"the whole loop, and its console for as long as you like", "ctrloop demo --stay"},
		{"a tour with little traffic, the scoreboard as JSON", "ctrloop demo --quick --json scoreboard.json"},
	},
	"up": {
		{"everything embedded, in ./ctrloop-data", "ctrloop up"},
		{"two services of a larger installation", "ctrloop up --target ingest,joiner --config ctrloop.yaml"},
	},
	"replay": {
		{"two days in one store, the second one may click on what the first one showed",
			"ctrloop replay monday.csv --dir store --keep-open"},
		{"the last of them", "ctrloop replay tuesday.csv --dir store"},
		{"a log in no order with broken lines", "ctrloop replay clicks.csv --sort --skip-bad --rejects rejects.jsonl"},
	},
	"render grammar":   {{"the words that descriptions are made of", "ctrloop render grammar"}},
	"render catalogue": {{"the built-in products", "ctrloop render catalogue"}},
	"render pipe":      {{"pictures of your own products for a parent process", "ctrloop render pipe --products products"}},
	"render image": {
		{"a product before a background",
			"ctrloop render image 'mountain lake, blue tones, soft morning light, no props' --product p-1f34c --out lake.png"},
	},
	"status": {
		{"one screen", "ctrloop status"},
		{"the health check of a container", "ctrloop status --ready"},
	},
	"trace": {
		{"what became of an impression", "ctrloop trace 0190163d-8694-7abc-8def-0123456789ab"},
		{"of a log that was replayed", "ctrloop trace 0190163d-8694-7abc-8def-0123456789ab --dir store --everywhere"},
	},
	"sql": {
		{"a question of your own", "ctrloop sql 'SELECT count() FROM labels'"},
		{"the book of questions, and one of them", "ctrloop sql --list"},
		{"", "ctrloop sql --question experiments --json"},
		{"for a notebook", "ctrloop sql 'SELECT * FROM labels_mature' --format parquet > labels.parquet"},
	},
	"audit": {
		{"all of it", "ctrloop audit"},
		{"the last day of a warehouse that is a server", "ctrloop audit --config ctrloop.yaml --since 24h"},
	},
	"experiment create": {
		{"test a version against the champion; it starts at once", "ctrloop experiment create prompt-9f2c11 --note 'fewer people'"},
		{"for two countries, to be started later",
			"ctrloop experiment create prompt-9f2c11 --id summer --target 'country in de,fr' --draft"},
	},
	"experiment list":     {{"those that run", "ctrloop experiment list --phase running"}},
	"experiment show":     {{"its figures", "ctrloop experiment show summer"}},
	"experiment start":    {{"begin a draft", "ctrloop experiment start summer"}},
	"experiment pause":    {{"stay at this step", "ctrloop experiment pause summer --note 'two pictures look odd'"}},
	"experiment resume":   {{"go on", "ctrloop experiment resume summer --note 'they are meant so'"}},
	"experiment promote":  {{"end it well", "ctrloop experiment promote summer --note 'enough seen'"}},
	"experiment rollback": {{"end it badly", "ctrloop experiment rollback summer --note 'ugly pictures'"}},
	"experiment stop": {
		{"end it without a winner", "ctrloop experiment stop summer --outcome inconclusive --note 'the shop changed its prices'"},
	},
	"experiment override": {{"go to the second step", "ctrloop experiment override summer --step 2 --note 'enough of 1 %'"}},
	"experiment force":    {{"see the treatment yourself", "ctrloop experiment force summer u17 treatment --note 'my phone'"}},
	"experiment holdout": {
		{"the groups there are", "ctrloop experiment holdout"},
		{"5 % of the users stay at the champion of now", "ctrloop experiment holdout prompt --share 0.05 --note 'what is it all worth?'"},
	},
	"experiment replay": {{"send its webhooks again", "ctrloop experiment replay summer --endpoint warehouse"}},
	"experiment export": {{"its table", "ctrloop experiment export summer --format csv --out summer.csv"}},
	"creative ls":       {{"those that may not serve, and why", "ctrloop creative ls --blocked"}},
	"creative block":    {{"out, on every replica", "ctrloop creative block c-0f1e2d3c4b5a6978 --note 'a logo of a competitor'"}},
	"creative unblock":  {{"in again", "ctrloop creative unblock c-0f1e2d3c4b5a6978 --note 'it is our own'"}},
	"dataset ls":        {{"all of them, and what became of them", "ctrloop dataset ls"}},
	"dataset show":      {{"by the beginning of its digest", "ctrloop dataset show 0f1e2d3c4b5a"}},
	"dataset verify":    {{"before it is used elsewhere", "ctrloop dataset verify 0f1e2d3c4b5a --dir ctrloop-data"}},
	"dataset diff":      {{"what the newer one has learned", "ctrloop dataset diff 0f1e2d3c4b5a 9a8b7c6d5e4f"}},
	"dataset export":    {{"for TRL's DPOTrainer", "ctrloop dataset export 0f1e2d3c4b5a --format trl --out pairs-trl"}},
	"job ls":            {{"those that failed", "ctrloop job ls --state failed"}},
	"job show":          {{"its data, its attempts, why it failed", "ctrloop job show rounds-0f1e2d3c4b5a"}},
	"job cancel":        {{"stop it", "ctrloop job cancel rounds-0f1e2d3c4b5a --note 'the pairs are of a broken campaign'"}},
	"job retry":         {{"run it once more", "ctrloop job retry rounds-0f1e2d3c4b5a --note 'the disk has room again'"}},
	"model ls":          {{"all versions", "ctrloop model ls"}},
	"model rollback":    {{"the champion before answers again", "ctrloop model rollback --note 'pictures are odd'"}},
	"suspect ls":        {{"what waits for somebody's word", "ctrloop suspect ls"}},
	"suspect clear":     {{"they were right after all", "ctrloop suspect clear --product p-1f34c --note 'a real campaign'"}},
	"suspect confirm":   {{"they stay out", "ctrloop suspect confirm --from 2026-03-01T10:00:00Z --note 'a script that clicked'"}},
	"suspect reopen":    {{"nothing is said of them any more", "ctrloop suspect reopen --product p-1f34c --note 'to be looked at again'"}},
	"token create": {
		{"for a program that sends events", "ctrloop token create shop --scopes events:write,ads:decide --expires 90d"},
	},
	"token ls":     {{"all of them", "ctrloop token ls"}},
	"token revoke": {{"by its name", "ctrloop token revoke shop"}},
	"stats lift": {
		{"of a file", "ctrloop stats lift clicks.csv"},
		{"of an experiment, with a report", "ctrloop stats lift --experiment summer --report summer.md"},
	},
	"stats srm": {
		{"a plan of 9 to 1", "ctrloop stats srm arms.csv --shares 0.9,0.1"},
		{"of an experiment", "ctrloop stats srm --experiment summer"},
	},
	"stats ope": {{"what a policy would have earned", "ctrloop stats ope log.csv.gz --policy policy.csv"}},
	"stats power": {
		{"how long for +2 %", "ctrloop stats power units.csv --effects 0.02 --units-per-day 20000"},
	},
	"eval world":    {{"a data set and its truth", "ctrloop eval world --seed 21 --out set21"}},
	"eval reward":   {{"one world, a smoke test", "ctrloop eval reward --seeds 21 --quick"}},
	"eval rounds":   {{"two worlds at a time", "ctrloop eval rounds --seeds 21,22,23 --jobs 2 --json rounds.json"}},
	"eval ablation": {{"in a folder where it goes on", "ctrloop eval ablation --dir ablation"}},
	"bench join":    {{"a smoke test", "ctrloop bench join --quick"}, {"the loop alone", "ctrloop bench join --only loop --json join.json"}},
	"bench peers":   {{"beside Kafka Streams", "ctrloop bench peers --streams streams --kafka 127.0.0.1:9092"}},
	"bench sink":    {{"a smoke test", "ctrloop bench sink --quick"}},
	"bench query":   {{"a tenth of the labels", "ctrloop bench query --labels 10000000"}},
	"bench experiments": {
		{"the false alarms alone", "ctrloop bench experiments --only aa --runs 1000"},
	},
	"migrate": {
		{"what would be done", "ctrloop migrate --plan"},
		{"a server", "ctrloop migrate --dsn 'clickhouse://ctrloop:secret@db.example:9000/ctrloop'"},
	},
	"erase user": {
		{"who was sent as u17", "ctrloop erase user u17"},
		{"by the hash in the labels", "ctrloop erase user --number 1234567890123456789"},
	},
	"backup":       {{"of an instance that may run", "ctrloop backup backup-monday"}},
	"restore":      {{"into a new folder", "ctrloop restore backup --dir restored"}},
	"config check": {{"every problem at once", "ctrloop config check ctrloop.yaml"}},
	"config show":  {{"what is in effect", "ctrloop config show ctrloop.yaml"}},
	"config docs":  {{"every key", "ctrloop config docs"}},
	"completion": {
		{"for bash, now and in every later shell", "ctrloop completion bash > ~/.local/share/bash-completion/completions/ctrloop"},
		{"for zsh, into a folder of $fpath", "ctrloop completion zsh > ~/.zfunc/_ctrloop"},
		{"for fish", "ctrloop completion fish > ~/.config/fish/completions/ctrloop.fish"},
	},
	"help":    {{"as with --help", "ctrloop help experiment create"}},
	"version": {{"for programs", "ctrloop version --json"}},
}

// printHelp is kong's help, with examples behind it.
func printHelp(options kong.HelpOptions, ctx *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, ctx); err != nil || ctx.Selected() == nil {
		return err
	}
	of := examples[strings.TrimPrefix(ctx.Selected().FullPath(), ctx.Model.Name+" ")]
	if len(of) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("\nExamples:\n")
	for _, e := range of {
		if e.what != "" {
			fmt.Fprintf(&b, "  # %s\n", e.what)
		}
		fmt.Fprintf(&b, "  %s\n", e.line)
	}
	_, err := fmt.Fprint(ctx.Stdout, b.String())
	return err
}

// showLists keeps kong from writing "..." behind a list's default, which reads as if there were more of it.
func showLists(k *kong.Kong) error {
	return kong.Visit(k.Model, func(node kong.Visitable, next kong.Next) error {
		if f, ok := node.(*kong.Flag); ok && f.IsSlice() && f.HasDefault && f.PlaceHolder == "" {
			f.Tag.Type = "list" // it has been built: the type is for its help alone
		}
		return next(nil)
	})
}

// HelpCmd is `ctrloop help`.
type HelpCmd struct {
	Command []string `arg:"" optional:"" help:"The command; without one, all are listed."`
}

// Run prints what --help prints.
func (c *HelpCmd) Run(ctx *kong.Context) error {
	of, err := kong.Trace(ctx.Kong, c.Command)
	if err == nil {
		err = of.Error
	}
	if err != nil {
		return usageError{withHint(err, "ctrloop --help lists the commands")}
	}
	return of.PrintUsage(false)
}
