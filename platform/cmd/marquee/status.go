package main

import (
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
		fmt.Fprintln(w, doors(g))
	}
	return nil
}

// doors are those of a gateway.
func doors(g stack.Gateway) string {
	text := fmt.Sprintf("gateway   REST http://%s   gRPC %s", g.HTTP, g.GRPC)
	if g.Devices != "" {
		text += "   displays " + g.Devices
	}
	return text
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
