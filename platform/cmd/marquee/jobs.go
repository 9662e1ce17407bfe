package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
)

type jobsCmd struct {
	where

	List   jobsListCmd   `cmd:"" help:"Show jobs, instances, health and versions; with --usage what each task takes."`
	Deploy jobsDeployCmd `cmd:"" help:"Make the cluster run what nomad-jobs/ says: binaries, edges, secrets, jobs."`
	Scale  jobsScaleCmd  `cmd:"" help:"Change how many instances of a job run, until it is deployed again."`
	Config jobsConfigCmd `cmd:"" help:"Show what a job runs with: values of variables, resources, placement."`
	Exec   jobsExecCmd   `cmd:"" help:"Run a command beside a task; its exit code is the answer."`
	Logs   jobsLogsCmd   `cmd:"" help:"Show a job's logs, all instances together."`
	Stop   jobsStopCmd   `cmd:"" help:"Stop a job, after asking."`
}

type jobsListCmd struct {
	Usage bool `help:"What each task uses, measured by its machine, beside what it was given."`
	JSON  bool `name:"json" help:"Print JSON."`
}

// Run shows what runs.
func (c *jobsListCmd) Run(e *env, j *jobsCmd) error {
	client, name, err := j.reach(e)
	if err != nil {
		return err
	}
	services, err := client.Status(e.ctx)
	if err != nil {
		return err
	}
	if c.Usage {
		return c.usage(e, client, services)
	}
	if c.JSON {
		return e.printJSON(services)
	}
	if len(services) == 0 {
		_, err := fmt.Fprintf(e.stdout, "nothing runs on %s\n", name)
		return err
	}
	return printServices(e.stdout, services, time.Now())
}

func (c *jobsListCmd) usage(e *env, client *jobs.Client, services []jobs.Service) error {
	all := make(map[string][]jobs.Usage)
	for _, service := range services {
		if service.Status == "" {
			continue
		}
		usage, err := client.Usage(e.ctx, service.Name)
		if err != nil {
			return err
		}
		all[service.Name] = usage
	}
	if c.JSON {
		return e.printJSON(all)
	}
	return printUsage(e.stdout, all)
}

func printUsage(w io.Writer, all map[string][]jobs.Usage) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "JOB\tINSTANCE\tTASK\tNODE\tCPU MHz\tOF\tMEMORY MiB\tMOST\tOF")
	for _, job := range slices.Sorted(maps.Keys(all)) {
		for _, u := range all[job] {
			most := "-"
			if u.MostMemory > 0 {
				most = fmt.Sprint(u.MostMemory >> 20)
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%.0f\t%d\t%d\t%s\t%d\n",
				job, jobs.Short(u.AllocID), u.Task, u.Node, u.CPU, u.GivenCPU, u.Memory>>20, most, u.GivenMemory>>20)
		}
	}
	return table.Flush()
}

type jobsDeployCmd struct {
	Services []string          `arg:"" optional:"" name:"service" help:"Only these, for example account. Default: all."`
	Var      map[string]string `placeholder:"NAME=VALUE" help:"A value for a variable of the job files, for example account_count=5. It holds for this deployment alone."`
	VarFile  []string          `placeholder:"FILE" type:"existingfile" help:"A file of NAME = VALUE lines in HCL; may be repeated, the last one wins."`
	Prune    bool              `help:"Stop jobs that were deployed from nomad-jobs/ and are no longer there; without it they are only named."`
	Timeout  time.Duration     `default:"15m" help:"Give up after this long. Nomad goes on by itself."`
	JSON     bool              `name:"json" help:"Print the result as JSON; progress goes to standard error."`
}

// deployResult is what deploy prints with --json.
type deployResult struct {
	Deployed []deployedJob `json:"deployed"`
	// Orphans are jobs that nomad-jobs/ has no more, Pruned whether they were
	// stopped.
	Orphans []string `json:"orphans"`
	Pruned  bool     `json:"pruned"`
	Seconds float64  `json:"seconds"`
}

type deployedJob struct {
	Job       string `json:"job"`
	Unchanged bool   `json:"unchanged"`
	Version   uint64 `json:"version"`
}

// Run makes the cluster run what the checkout says.
func (c *jobsDeployCmd) Run(e *env, j *jobsCmd) error {
	ctx, cancel := e.within(c.Timeout)
	defer cancel()
	steps := newSteps(e.stderr)
	s, err := j.stack(e, c, func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	if err := errors.Join(s.Known(c.Services...), s.CheckVariables()); err != nil {
		return err
	}
	if err := s.Prepare(ctx); err != nil {
		return because(ctx, err)
	}
	deployed, err := s.DeployAll(ctx, c.Services...)
	if err != nil {
		return because(ctx, err)
	}
	result := deployResult{Deployed: []deployedJob{}, Pruned: c.Prune}
	for _, d := range deployed {
		result.Deployed = append(result.Deployed, deployedJob{d.Job, d.Unchanged, d.Version})
	}
	orphans := s.Orphans
	if c.Prune {
		orphans = s.StopOrphans
	}
	if result.Orphans, err = orphans(ctx); err != nil {
		return because(ctx, err)
	}
	if err := s.Prune(ctx); err != nil {
		return because(ctx, err)
	}
	result.Seconds = steps.elapsed().Seconds()
	if c.JSON {
		return e.printJSON(result)
	}
	return printDeployed(e.stdout, result)
}

func printDeployed(w io.Writer, r deployResult) error {
	for _, d := range r.Deployed {
		what := "is deployed"
		if d.Unchanged {
			what = "ran this already"
		}
		fmt.Fprintf(w, "%s %s (version %d)\n", d.Job, what, d.Version)
	}
	for _, id := range r.Orphans {
		if r.Pruned {
			fmt.Fprintf(w, "%s was stopped: nomad-jobs/ has it no more\n", id)
		} else {
			fmt.Fprintf(w, "%s still runs, and nomad-jobs/ has it no more: --prune (make deploy PRUNE=1) stops it\n", id)
		}
	}
	_, err := fmt.Fprintf(w, "done after %.1f s\n", r.Seconds)
	return err
}

// stack is the platform on the chosen cluster, with all values for its job
// files.
func (j *jobsCmd) stack(e *env, c *jobsDeployCmd, progress func(string)) (*stack.Stack, error) {
	if j.Env == "" && os.Getenv("NOMAD_ADDR") != "" && !e.onThisMachine(os.Getenv("NOMAD_ADDR")) {
		return nil, fmt.Errorf("deploying to %s (NOMAD_ADDR) needs more than its address: name the environment with --env, or unset NOMAD_ADDR for the cluster on this machine",
			os.Getenv("NOMAD_ADDR"))
	}
	if j.Env == "" {
		return e.openWith(stack.Config{Variables: c.Var, VariableFiles: c.VarFile, Progress: progress})
	}
	to, err := environment.Load(e.root, j.Env)
	if err != nil {
		return nil, err
	}
	target, err := stack.OnEnvironment(to)
	if err != nil {
		return nil, err
	}
	files := []string{stack.ProductionVariables(e.root)}
	own := filepath.Join(to.Dir(), "jobs.hcl")
	if _, err := os.Stat(own); err == nil {
		files = append(files, own)
	}
	return stack.Open(stack.Config{
		Root: e.root, Target: target, Environ: os.Environ(),
		Variables: c.Var, VariableFiles: append(files, c.VarFile...), Progress: progress,
	})
}

// onThisMachine says whether an address is that of this machine's cluster, as
// marquee env exports it.
func (e *env) onThisMachine(nomadAddress string) bool {
	s, err := e.open(nil)
	return err == nil && s.Target().Nomad().Address() == nomadAddress
}

type jobsScaleCmd struct {
	Job     string        `arg:"" help:"The job, for example account."`
	Count   int           `arg:"" help:"How many instances."`
	Timeout time.Duration `default:"10m" help:"Give up waiting after this long. Nomad goes on by itself."`
}

// Run scales a job.
func (c *jobsScaleCmd) Run(e *env, j *jobsCmd) error {
	ctx, cancel := e.within(c.Timeout)
	defer cancel()
	client, _, err := j.reach(e)
	if err != nil {
		return err
	}
	steps := newSteps(e.stderr)
	if err := client.Scale(ctx, c.Job, c.Count, steps.progress); err != nil {
		return because(ctx, err)
	}
	_, err = fmt.Fprintf(e.stdout, "%s runs %d instances after %.1f s.\n", c.Job, c.Count, steps.elapsed().Seconds())
	return err
}

type jobsConfigCmd struct {
	Job  string `arg:"" help:"The job, for example account."`
	JSON bool   `name:"json" help:"Print JSON: the variables and Nomad's complete specification."`
}

// Run shows what a job runs with.
func (c *jobsConfigCmd) Run(e *env, j *jobsCmd) error {
	client, _, err := j.reach(e)
	if err != nil {
		return err
	}
	effective, err := client.Effective(e.ctx, c.Job)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(effective)
	}
	return printEffective(e.stdout, effective)
}

func printEffective(w io.Writer, effective *jobs.Effective) error {
	spec := effective.Spec
	fmt.Fprintf(w, "%s version %d, %s, submitted %s, priority %d, node pool %s\n",
		effective.Job, effective.Version, effective.Status, effective.Submitted.Format(time.RFC3339), *spec.Priority, *spec.NodePool)
	for _, c := range spec.Constraints {
		fmt.Fprintf(w, "constraint %s\n", strings.Join(slices.DeleteFunc([]string{c.LTarget, c.Operand, c.RTarget}, func(s string) bool { return s == "" }), " "))
	}
	for _, group := range spec.TaskGroups {
		fmt.Fprintf(w, "\ngroup %s: %d instances", *group.Name, *group.Count)
		if s := group.Scaling; s != nil && s.Min != nil && s.Max != nil {
			fmt.Fprintf(w, " (marquee jobs scale: %d to %d)", *s.Min, *s.Max)
		}
		fmt.Fprintln(w)
		for _, task := range group.Tasks {
			fmt.Fprintf(w, "  task %s: driver %s, %d MHz, %d MiB\n", task.Name, task.Driver, *task.Resources.CPU, *task.Resources.MemoryMB)
			config, err := json.Marshal(task.Config)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "    config %s\n", config)
			for _, a := range task.Artifacts {
				fmt.Fprintf(w, "    artifact %s\n", *a.GetterSource)
			}
			for _, name := range slices.Sorted(maps.Keys(task.Env)) {
				fmt.Fprintf(w, "    env %s=%s\n", name, task.Env[name])
			}
		}
	}
	if len(effective.Variables) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nvariables of the job file")
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(effective.Variables)) {
		value := effective.Variables[name]
		origin := "given"
		if value.Default {
			origin = "default"
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\n", name, origin, value.Expression)
	}
	return table.Flush()
}

type jobsLogsCmd struct {
	Job    string `arg:"" help:"The job, for example account."`
	Follow bool   `short:"f" help:"Go on until Ctrl-C, also with instances that start later."`
	Lines  int    `short:"n" default:"100" help:"Lines of each instance's streams to show from before."`
}

// Run shows logs.
func (c *jobsLogsCmd) Run(e *env, j *jobsCmd) error {
	client, _, err := j.reach(e)
	if err != nil {
		return err
	}
	return client.Logs(e.ctx, c.Job, jobs.LogOptions{Lines: c.Lines, Follow: c.Follow}, e.stdout)
}

type jobsStopCmd struct {
	Job     string        `arg:"" help:"The job, for example account."`
	Yes     bool          `short:"y" help:"Do not ask."`
	Purge   bool          `help:"Have Nomad forget the job and its history."`
	Timeout time.Duration `default:"5m" help:"Give up waiting after this long. Nomad goes on by itself."`
}

// Run stops a job.
func (c *jobsStopCmd) Run(e *env, j *jobsCmd) error {
	client, name, err := j.reach(e)
	if err != nil {
		return err
	}
	effective, err := client.Effective(e.ctx, c.Job)
	if err != nil {
		return err
	}
	service, err := client.Service(e.ctx, c.Job)
	if err != nil {
		return err
	}
	if !c.Yes {
		question := fmt.Sprintf("Stop %s, %d healthy instances, on %s? [y/N] ", effective.Job, service.Healthy, name)
		if err := e.confirm(question); err != nil {
			return fmt.Errorf("%s was not stopped: %w", c.Job, err)
		}
	}
	ctx, cancel := e.within(c.Timeout) // without the time that the answer took
	defer cancel()
	newSteps(e.stderr).say("%s: stopping; its instances may take their kill_timeout", c.Job)
	if err := client.Stop(ctx, c.Job, c.Purge); err != nil {
		return because(ctx, err)
	}
	_, err = fmt.Fprintf(e.stdout, "%s is stopped.\n", c.Job)
	return err
}
