package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
)

type statusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// statusResult is what status prints with --json.
type statusResult struct {
	Cluster  cluster.Status  `json:"cluster"`
	Services []jobs.Service  `json:"services"`
	Gateways []stack.Gateway `json:"gateways"`
}

// Run shows what runs. It fails when the cluster does not, after showing what
// is there of it.
func (c *statusCmd) Run(e *env) error {
	s, status, err := e.look(nil)
	if err != nil {
		return err
	}
	result := statusResult{Cluster: status, Services: []jobs.Service{}, Gateways: []stack.Gateway{}}
	if !status.Ready {
		if c.JSON {
			err = e.printJSON(result)
		} else {
			err = printAgents(e.stdout, status)
		}
		return errors.Join(err, e.mustRun(status))
	}
	if result.Services, err = s.Jobs().Status(e.ctx); err != nil {
		return err
	}
	if result.Gateways, _, err = stack.Gateways(e.ctx, s.Cluster().Consul(), 0); err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(result)
	}
	return printStatus(e.stdout, result, time.Now())
}

func printStatus(w io.Writer, r statusResult, now time.Time) error {
	fmt.Fprintf(w, "cluster %s", r.Cluster.Name)
	for _, a := range r.Cluster.Agents {
		fmt.Fprintf(w, "   %s %s (pid %d)", a.Name, a.Address, a.PID)
	}
	fmt.Fprint(w, "\n\n")
	if err := printServices(w, r.Services, now); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, g := range r.Gateways {
		fmt.Fprintf(w, "gateway   REST http://%s   gRPC %s\n", g.HTTP, g.GRPC)
	}
	return nil
}

// printServices shows services and instances, and what is wrong with them.
func printServices(w io.Writer, services []jobs.Service, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SERVICE\tINSTANCE\tHEALTH\tSTATE\tVERSION\tADDRESS\tNODE\tUP\tRESTARTS")
	for _, service := range services {
		state := service.Status
		if state == "" {
			state = "no job"
		}
		fmt.Fprintf(table, "%s\t\t%d of %d\t%s\t\t\t\t\t\n", service.Name, service.Healthy, max(service.Desired, len(service.Instances)), state)
		for _, i := range service.Instances {
			id := i.AllocID
			if id == "" {
				id = i.ID
			}
			up := ""
			if !i.Started.IsZero() {
				up = now.Sub(i.Started).Round(time.Second).String()
			}
			health := i.Health
			if health == "" {
				health = "-"
			}
			fmt.Fprintf(table, "\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n",
				shortInstance(id), health, i.State, i.Release, i.Address, i.Node, up, i.Restarts)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, service := range services {
		for _, i := range service.Instances {
			if i.Output != "" {
				fmt.Fprintf(w, "\n%s %s is %s: %s\n", service.Name, shortInstance(i.AllocID+i.ID), i.Health, firstLine(i.Output))
			}
		}
	}
	return nil
}

// printAgents shows a cluster of which not everything runs.
func printAgents(w io.Writer, status cluster.Status) error {
	fmt.Fprintf(w, "cluster %s is not running: %s\n\n", status.Name, status.Problem)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "AGENT\tPID\tADDRESS\tLOG")
	for _, a := range status.Agents {
		pid, address := "-", "-"
		if a.PID != 0 {
			pid = strconv.Itoa(a.PID)
		}
		if a.Address != "" {
			address = a.Address
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", a.Name, pid, address, a.Log)
	}
	return table.Flush()
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

type logsCmd struct {
	Service string `arg:"" help:"The service, for example account."`
	Follow  bool   `short:"f" help:"Go on until Ctrl-C, also with instances that start later."`
	Lines   int    `short:"n" default:"100" help:"Lines of each instance's streams to show from before."`
}

// Run shows logs.
func (c *logsCmd) Run(e *env) error {
	s, err := e.running(nil)
	if err != nil {
		return err
	}
	return s.Jobs().Logs(e.ctx, c.Service, jobs.LogOptions{Lines: c.Lines, Follow: c.Follow}, e.stdout)
}

type deployCmd struct {
	Service string            `arg:"" help:"The service, for example account."`
	Var     map[string]string `placeholder:"NAME=VALUE" help:"A value for a variable of the job file, for example account_count=5. It holds for this deployment alone."`
	Timeout time.Duration     `default:"10m" help:"Give up after this long. Nomad goes on by itself."`
	JSON    bool              `name:"json" help:"Print the result as JSON; progress goes to standard error."`
}

// Run builds and rolls out one service.
func (c *deployCmd) Run(e *env) error {
	ctx, cancel := context.WithTimeoutCause(e.ctx, c.Timeout, fmt.Errorf("it took longer than --timeout=%s", c.Timeout))
	defer cancel()
	steps := newSteps(e.stderr)
	s, err := e.running(func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	done, err := s.Deploy(ctx, c.Service, c.Var)
	if err != nil {
		return because(ctx, err)
	}
	if c.JSON {
		return e.printJSON(map[string]any{
			"service": done.Job, "unchanged": done.Unchanged, "version": done.Version, "seconds": steps.elapsed().Seconds(),
		})
	}
	if done.Unchanged {
		_, err = fmt.Fprintf(e.stdout, "%s ran this already (version %d); nothing was changed.\n", done.Job, done.Version)
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s is deployed (version %d) after %.1f s.\n", done.Job, done.Version, steps.elapsed().Seconds())
	return err
}

type restartCmd struct {
	Service string        `arg:"" help:"The service, for example account."`
	Timeout time.Duration `default:"10m" help:"Give up after this long."`
}

// Run replaces a service's instances.
func (c *restartCmd) Run(e *env) error {
	ctx, cancel := context.WithTimeoutCause(e.ctx, c.Timeout, fmt.Errorf("it took longer than --timeout=%s", c.Timeout))
	defer cancel()
	steps := newSteps(e.stderr)
	s, err := e.running(nil)
	if err != nil {
		return err
	}
	err = s.Jobs().Restart(ctx, c.Service, func(p jobs.Progress) {
		steps.say("%s: %d of %d replaced: %s", p.Job, p.Healthy, p.Desired, p.Message)
	})
	if err != nil {
		return because(ctx, err)
	}
	return nil
}

type watchCmd struct {
	Service string `arg:"" help:"The service, for example account."`
	Method  string `placeholder:"SERVICE/METHOD" help:"What to call with an empty request. Default: a method of the service that changes nothing and that anyone may call."`
	Rate    int    `default:"50" help:"Calls a second, through all gateways in turn."`
}

// Run watches until Ctrl-C.
func (c *watchCmd) Run(e *env) error {
	if c.Rate < 1 || c.Rate > 10000 {
		return fmt.Errorf("--rate=%d: want 1 to 10000 calls a second", c.Rate)
	}
	return e.withAPI(func(_ *stack.Stack, d *door, a *api) error {
		find, name := a.probe, c.Service
		if c.Method != "" {
			find, name = a.method, c.Method
		}
		method, err := find(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stderr, "calling %s %d times a second through the gateways; Ctrl-C ends it\n", methodPath(method)[1:], c.Rate)
		return watch(e.ctx, d, method, c.Rate, e.stdout)
	})
}

// withAPI runs f with a connection to the gateways and what they serve.
func (e *env) withAPI(f func(*stack.Stack, *door, *api) error) error {
	s, err := e.running(nil)
	if err != nil {
		return err
	}
	d, err := openDoor(e.ctx, s.Cluster().Consul())
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(e.ctx, 10*time.Second)
	a, err := reflectAPI(asking, d)
	cancel()
	if err == nil {
		err = f(s, d, a)
	}
	return errors.Join(err, d.Close())
}

type invokeCmd struct {
	Method  string        `arg:"" help:"SERVICE/METHOD, for example marquee.account.v1.AccountService/GetAccount."`
	Request string        `arg:"" optional:"" help:"The request as JSON; several one after the other for a stream; - reads standard input. Default: an empty request."`
	Token   string        `help:"Access token to call with."`
	As      string        `help:"Log in first: demo is the demo account." enum:",demo" default:""`
	Timeout time.Duration `default:"30s" help:"Deadline of the call; 0s for none."`
}

// Validate refuses two callers at once.
func (c *invokeCmd) Validate() error {
	if c.Token != "" && c.As != "" {
		return errors.New("--token and --as both say who calls: leave one out")
	}
	return nil
}

// Run calls one method and prints each answer as JSON.
func (c *invokeCmd) Run(e *env) error {
	return e.withAPI(func(s *stack.Stack, d *door, a *api) error {
		method, err := a.method(c.Method)
		if err != nil {
			return err
		}
		ctx := e.ctx
		if c.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.Timeout)
			defer cancel()
		}
		token := c.Token
		if c.As != "" {
			if token, err = demoToken(ctx, s, a, d); err != nil {
				return errors.New(explainStatus(err, a.resolver()))
			}
		}
		requests := io.Reader(strings.NewReader(c.Request))
		if c.Request == "-" {
			requests = e.stdin
		}
		err = a.call(bearer(ctx, token), d, method, requests, func(json []byte) error {
			_, err := fmt.Fprintf(e.stdout, "%s\n", json)
			return err
		})
		if err != nil {
			return errors.New(explainStatus(err, a.resolver()))
		}
		return nil
	})
}

type listCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run lists services and methods.
func (c *listCmd) Run(e *env) error {
	return e.withAPI(func(_ *stack.Stack, _ *door, a *api) error {
		names := make(map[string][]string, len(a.services))
		for _, service := range a.services {
			methods := make([]string, service.Methods().Len())
			for i := range methods {
				methods[i] = string(service.Methods().Get(i).Name())
			}
			names[string(service.FullName())] = methods
		}
		if c.JSON {
			return e.printJSON(names)
		}
		for _, service := range a.services {
			for _, method := range names[string(service.FullName())] {
				if _, err := fmt.Fprintf(e.stdout, "%s/%s\n", service.FullName(), method); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

type describeCmd struct {
	Name string `arg:"" help:"A service, SERVICE/METHOD, or a message."`
}

// Run describes one thing as a .proto file has it.
func (c *describeCmd) Run(e *env) error {
	return e.withAPI(func(_ *stack.Stack, _ *door, a *api) error {
		text, err := a.describe(c.Name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(e.stdout, text)
		return err
	})
}
