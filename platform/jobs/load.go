package jobs

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
)

// envPrefix begins the environment variables that set a job file's variables.
const envPrefix = "NOMAD_VAR_"

// File is a job file with values for its variables. A value is taken from
// Variables, else from VariableFiles (the last one wins), else from Environ, and
// else the file's default holds: Nomad's own order. Values for variables that
// the file does not declare are ignored, so that one set serves all job files.
type File struct {
	// Path is the .nomad.hcl file.
	Path string
	// Variables are values by name. Those of variables of type string are taken
	// as they are; others are written as in HCL: 3, true, ["a", "b"].
	Variables map[string]string
	// VariableFiles are HCL files of name = value lines.
	VariableFiles []string
	// Environ is NAME=VALUE as os.Environ returns it; only names that begin
	// with NOMAD_VAR_ count.
	Environ []string
}

// Declared are the names of the variables that the file declares, sorted.
func (f File) Declared() ([]string, error) {
	source, err := os.ReadFile(f.Path)
	if err != nil {
		return nil, fmt.Errorf("reading job file: %w", err)
	}
	declared, err := declaredVariables(source, f.Path)
	return slices.Sorted(maps.Keys(declared)), err
}

// Job is a job ready to be planned and deployed.
type Job struct {
	// Spec is what Nomad made of the file.
	Spec *nomad.Job

	source    string
	variables string
}

// ID is the job's id.
func (j *Job) ID() string { return *j.Spec.ID }

// Load reads a job file and has Nomad parse and validate it. An error names the
// file and what is wrong in it.
func (c *Client) Load(ctx context.Context, f File) (*Job, error) {
	source, err := os.ReadFile(f.Path)
	if err != nil {
		return nil, fmt.Errorf("reading job file: %w", err)
	}
	variables, err := f.render(source)
	if err != nil {
		return nil, err
	}
	job := &Job{Spec: &nomad.Job{}, source: string(source), variables: variables}
	request := &nomad.JobsParseRequest{JobHCL: job.source, Variables: variables, Canonicalize: true}
	if _, err := c.nomad.Raw().Write("/v1/jobs/parse", request, job.Spec, write(ctx)); err != nil {
		return nil, fmt.Errorf("parsing job file %s: %w", f.Path, explain(err))
	}

	checked := &nomad.JobValidateResponse{}
	if _, err := c.nomad.Raw().Write("/v1/validate/job", &nomad.JobValidateRequest{Job: job.Spec}, checked, write(ctx)); err != nil {
		return nil, fmt.Errorf("validating job file %s: %w", f.Path, explain(err))
	}
	if len(checked.ValidationErrors) > 0 {
		return nil, fmt.Errorf("validating job file %s: %s", f.Path, strings.Join(checked.ValidationErrors, "; "))
	}
	return job, nil
}

// render is the values for the variables that source declares, as the content
// of a variables file.
func (f File) render(source []byte) (string, error) {
	declared, err := declaredVariables(source, f.Path)
	if err != nil {
		return "", err
	}
	values := make(map[string]string)
	set := func(name, value, origin string) error {
		kind, ok := declared[name]
		if !ok {
			return nil
		}
		if kind == "string" {
			values[name] = string(hclwrite.TokensForValue(cty.StringVal(value)).Bytes())
			return nil
		}
		expression, diags := hclsyntax.ParseExpression([]byte(value), name, hcl.InitialPos)
		if !diags.HasErrors() {
			_, diags = expression.Value(nil) // names and functions mean nothing here
		}
		if diags.HasErrors() {
			return fmt.Errorf("%s: variable %s of %s is of type %s: %q is not one", origin, name, filepath.Base(f.Path), kind, value)
		}
		values[name] = value
		return nil
	}

	for _, entry := range f.Environ {
		name, value, _ := strings.Cut(entry, "=")
		if variable, ok := strings.CutPrefix(name, envPrefix); ok {
			if err := set(variable, value, "environment variable "+name); err != nil {
				return "", err
			}
		}
	}
	for _, path := range f.VariableFiles {
		attributes, err := variableFile(path)
		if err != nil {
			return "", err
		}
		for name, expression := range attributes {
			if _, ok := declared[name]; ok {
				values[name] = expression
			}
		}
	}
	for name, value := range f.Variables {
		if err := set(name, value, "value given"); err != nil {
			return "", err
		}
	}

	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&text, "%s = %s\n", name, values[name])
	}
	return text.String(), nil
}

// declaredVariables are the variable blocks of a job file: name -> type as it
// is written there, "any" when it is not.
func declaredVariables(source []byte, path string) (map[string]string, error) {
	body, err := parseHCL(source, path)
	if err != nil {
		return nil, err
	}
	declared := make(map[string]string)
	for _, block := range body.Blocks {
		if block.Type != "variable" || len(block.Labels) != 1 {
			continue
		}
		kind := "any"
		if attribute, ok := block.Body.Attributes["type"]; ok {
			kind = string(attribute.Expr.Range().SliceBytes(source))
		}
		declared[block.Labels[0]] = kind
	}
	return declared, nil
}

// VariablesIn are the names of the variables that a file of name = value lines
// has values for, sorted.
func VariablesIn(path string) ([]string, error) {
	expressions, err := variableFile(path)
	return slices.Sorted(maps.Keys(expressions)), err
}

// variableFile returns the expressions of an HCL file of name = value lines.
func variableFile(path string) (map[string]string, error) {
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading variables file: %w", err)
	}
	body, err := parseHCL(source, path)
	if err != nil {
		return nil, err
	}
	if len(body.Blocks) > 0 {
		return nil, fmt.Errorf("variables file %s: line %d: only name = value may stand here, not the block %q",
			path, body.Blocks[0].Range().Start.Line, body.Blocks[0].Type)
	}
	expressions := make(map[string]string, len(body.Attributes))
	for name, attribute := range body.Attributes {
		expressions[name] = string(attribute.Expr.Range().SliceBytes(source))
	}
	return expressions, nil
}

func parseHCL(source []byte, path string) (*hclsyntax.Body, error) {
	file, diags := hclsyntax.ParseConfig(source, path, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, fmt.Errorf("reading HCL: %w", diags)
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return nil, fmt.Errorf("reading HCL: %s is not in HCL's native syntax", path)
	}
	return body, nil
}
