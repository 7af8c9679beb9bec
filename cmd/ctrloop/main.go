// Command ctrloop is the whole system in one binary: the embedded loop, every service on its own, and the
// tools around them.
//
// Exit codes:
//
//	0    done
//	1    failed while working, or what was asked for is not there
//	2    wrong usage, configuration or input file; nothing was started
//	3    something must be set up first (the message names the command)
//	4    the work is done, and events were lost, or rejected above the given limit
//	130  stopped by a signal before the work was done
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"ctrloop/internal/warehouse"

	"github.com/alecthomas/kong"
)

// CLI is the command line: one line per command; each command lives in a file of its own.
type CLI struct {
	Globals

	Setup      SetupCmd      `cmd:"" help:"Fetch the embedded ClickHouse engine and the Python environment."`
	Demo       DemoCmd       `cmd:"" help:"The whole loop on the built-in world, with a scoreboard at the end."`
	Up         UpCmd         `cmd:"" help:"Run the services, everything they need embedded unless configured."`
	Replay     ReplayCmd     `cmd:"" help:"Feed recorded ad logs through edge, join and warehouse."`
	Render     RenderCmd     `cmd:"" help:"Draw creatives; print the grammar and the catalogue."`
	Status     StatusCmd     `cmd:"" help:"One screen about a running instance."`
	Trace      TraceCmd      `cmd:"" help:"Where an impression is, and what happened to it."`
	SQL        SQLCmd        `cmd:"" name:"sql" help:"Ask the warehouse, running or at rest."`
	Audit      AuditCmd      `cmd:"" help:"Hold the warehouse against what the join says it wrote."`
	Suspect    SuspectCmd    `cmd:"" help:"Labels that were made while a circuit breaker was open: look at them, clear them."`
	Experiment ExperimentCmd `cmd:"" help:"A/B tests and rollouts: create, watch, pause, end."`
	Creative   CreativeCmd   `cmd:"" help:"Creatives: which there are, and which must not serve."`
	Dataset    DatasetCmd    `cmd:"" help:"Data sets that models learn from: show, verify, compare, export."`
	Job        JobCmd        `cmd:"" help:"Training jobs: where they are, and how to end one or run it again."`
	Model      ModelCmd      `cmd:"" help:"Model versions: which there are, and the way back."`
	Token      TokenCmd      `cmd:"" help:"Tokens with scopes, for callers of an instance."`
	Stats      StatsCmd      `cmd:"" help:"The statistics of an experiment, from files or a warehouse."`
	Eval       EvalCmd       `cmd:"" help:"Measure what is learned, on built-in worlds and without the stream."`
	Bench      BenchCmd      `cmd:"" help:"Measure the join, the sink, the warehouse, the statistics of rollouts."`
	Migrate    MigrateCmd    `cmd:"" help:"Bring a warehouse to the schema of this binary, or say what that would take."`
	Erase      EraseCmd      `cmd:"" help:"Erase a user's events, with proof."`
	Backup     BackupCmd     `cmd:"" help:"Copy the stores of an instance, running or at rest, with checksums."`
	Restore    RestoreCmd    `cmd:"" help:"Bring a backup back into an empty folder."`
	Config     ConfigCmd     `cmd:"" help:"Check, show or document the configuration."`
	Completion CompletionCmd `cmd:"" help:"Print the completion script of a shell."`
	Help       HelpCmd       `cmd:"" help:"Print the help of a command."`
	Version    VersionCmd    `cmd:"" help:"Print the version of this binary."`

	Complete CompleteCmd `cmd:"" name:"complete" hidden:"" help:"Print what may come next, for the completion scripts."`
}

// Globals are the options every command shares.
type Globals struct {
	LogLevel  string `help:"Least severe level to log: trace, debug, info, warn or error; auto is warn where a command shows its own progress, else info." default:"auto" enum:"auto,trace,debug,info,warn,error" env:"CTRLOOP_LOG_LEVEL"`
	LogFormat string `help:"Log lines as console or json; auto is console on a terminal, else json." default:"auto" enum:"auto,console,json" env:"CTRLOOP_LOG_FORMAT"`
	Home      string `help:"Folder for downloads (engine, Python environment). Default: ctrloop under the user's cache folder." env:"CTRLOOP_HOME" type:"path" placeholder:"DIR"`
}

// Exit codes; the package comment lists them for readers.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNeedsSetup  = 3
	exitLost        = 4
	exitInterrupted = 130
)

func main() {
	warehouse.MaybeChild() // the embedded engine's process is this binary again
	ctx, stop := interruptible(context.Background())
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// interruptible returns a context that ends at the first SIGINT or SIGTERM. Later signals then have their
// usual effect, so that a second Ctrl-C stops at once.
func interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// newParser reads the command line into cli. exit is called with the code where the parser itself answers (--help, --version).
func newParser(cli *CLI, out *output, exit func(code int)) (*kong.Kong, error) {
	return kong.New(cli,
		kong.Name("ctrloop"),
		kong.Description("Ads that learn from their clicks: join, pair, train and serve in one loop."),
		kong.Writers(out.stdout, out.stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Exit(exit),
		kong.Help(printHelp),
		kong.PostBuild(showLists),
		kong.Bind(out),
		kong.Bind(&cli.Globals),
	)
}

// run parses args, runs the command, and returns the exit code. Errors are printed to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == "--version" { // no flag of ours: commands have one of that name, for a model's
		args = []string{"version"}
	}
	var cli CLI
	exited := -1
	parser, err := newParser(&cli, &output{stdout: stdout, stderr: stderr}, func(code int) { exited = code })
	if err != nil {
		printError(stderr, fmt.Errorf("command line of this binary is broken (a bug): %w", err))
		return exitFailed
	}
	command, err := parser.Parse(args)
	if exited >= 0 { // --help printed its text
		return exited
	}
	if err != nil {
		printError(stderr, withHint(err, "ctrloop --help lists the commands; ctrloop COMMAND --help its options"))
		return exitUsage
	}
	command.BindTo(ctx, (*context.Context)(nil))
	if err := command.Run(); err != nil {
		printError(stderr, err)
		return exitCode(ctx, err)
	}
	return exitOK
}

// exitCode maps an error to the exit code: its own, if it carries one, else by its kind.
func exitCode(ctx context.Context, err error) int {
	var coded interface{ ExitCode() int }
	switch {
	case errors.As(err, &coded):
		return coded.ExitCode()
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return exitInterrupted
	default:
		return exitFailed
	}
}
