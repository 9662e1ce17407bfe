package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/stack"
)

type envCmd struct {
	Service string `help:"Also what an instance of this service needs to be started by hand beside the others: account makes 'accountd --listen :0' join."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

// Run prints the environment.
func (c *envCmd) Run(e *env) error {
	s, err := e.running(nil)
	if err != nil {
		return err
	}
	variables, err := c.variables(e, s)
	if err != nil {
		return err
	}
	values := make(map[string]string, len(variables))
	for _, v := range variables {
		values[v.Name] = v.Value
	}
	if c.JSON {
		return e.printJSON(values)
	}
	for _, v := range variables {
		if _, err := fmt.Fprintf(e.stdout, "export %s=%s\n", v.Name, shellQuote(v.Value)); err != nil {
			return err
		}
	}
	return c.printPath(e, values)
}

// printPath adds the tools, and the service's program, to PATH.
func (c *envCmd) printPath(e *env, values map[string]string) error {
	folders := []string{filepath.Join(e.root, ".marquee", "tools")}
	if program := values["NOMAD_VAR_"+c.Service+"_binary"]; program != "" {
		folders = append([]string{filepath.Dir(program)}, folders...)
	}
	present := filepath.SplitList(os.Getenv("PATH"))
	folders = slices.DeleteFunc(folders, func(folder string) bool { return slices.Contains(present, folder) })
	if len(folders) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(e.stdout, "export PATH=%s:\"$PATH\"\n", shellQuote(strings.Join(folders, ":")))
	return err
}

// variables are the cluster's own, the job files', and those of one service.
func (c *envCmd) variables(e *env, s *stack.Stack) ([]cluster.EnvVar, error) {
	variables := s.Cluster().Env()
	values, err := s.Variables()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		variables = append(variables, cluster.EnvVar{Name: "NOMAD_VAR_" + name, Value: values[name]})
	}
	if c.Service == "" {
		return variables, nil
	}
	byHand, err := s.ByHand(e.ctx, c.Service)
	if err != nil {
		return nil, err
	}
	// The service's own token, in place of the operator's.
	variables = slices.DeleteFunc(variables, func(v cluster.EnvVar) bool { return byHand[v.Name] != "" })
	for _, name := range slices.Sorted(maps.Keys(byHand)) {
		variables = append(variables, cluster.EnvVar{Name: name, Value: byHand[name]})
	}
	return variables, nil
}

// shellQuote makes any value one word of a POSIX shell.
func shellQuote(value string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=,@+", r)
	}
	if value != "" && strings.IndexFunc(value, func(r rune) bool { return !plain(r) }) < 0 {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}
