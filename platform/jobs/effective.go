package jobs

import (
	"context"
	"fmt"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// Effective is a job as Nomad runs it, with the values that made it so.
type Effective struct {
	Job string `json:"job"`
	// Version is the job's version in Nomad, Submitted when it was registered.
	Version   uint64    `json:"version"`
	Submitted time.Time `json:"submitted"`
	Status    string    `json:"status"`
	// Variables are the values of the job file's variables, as HCL expressions
	// by name: those given and the defaults of all others. Scaling a job changes
	// none of them. Empty when Nomad does not remember the file.
	Variables map[string]Value `json:"variables"`
	// Spec is the job itself, complete.
	Spec *nomad.Job `json:"spec"`
}

// Value is a value of a job file's variable.
type Value struct {
	Expression string `json:"expression"`
	// Default is true when nobody gave a value and the job file's own holds.
	Default bool `json:"default"`
}

// Effective returns what Nomad runs under a job's id.
func (c *Client) Effective(ctx context.Context, id string) (*Effective, error) {
	job, err := c.job(ctx, id)
	if err != nil {
		return nil, err
	}
	effective := &Effective{
		Job: id, Version: *job.Version, Submitted: time.Unix(0, *job.SubmitTime).UTC(), Status: *job.Status,
		Variables: map[string]Value{}, Spec: job,
	}
	submission, _, err := c.nomad.Jobs().Submission(id, int(*job.Version), query(ctx))
	switch {
	case isNotFound(err):
		return effective, nil
	case err != nil:
		return nil, fmt.Errorf("reading what job %s was made from: %w", id, explain(err))
	}
	effective.Variables, err = submitted(submission)
	return effective, err
}

// submitted are the values of all variables of a job file that was submitted.
func submitted(s *nomad.JobSubmission) (map[string]Value, error) {
	values := map[string]Value{}
	if s.Format != "hcl2" {
		return values, nil
	}
	body, err := parseHCL([]byte(s.Source), "the submitted job file")
	if err != nil {
		return nil, err
	}
	for _, block := range body.Blocks {
		if block.Type != "variable" || len(block.Labels) != 1 {
			continue
		}
		if attribute, ok := block.Body.Attributes["default"]; ok {
			values[block.Labels[0]] = Value{Expression: string(attribute.Expr.Range().SliceBytes([]byte(s.Source))), Default: true}
		}
	}
	given, err := parseHCL([]byte(s.Variables), "the submitted variables")
	if err != nil {
		return nil, err
	}
	for name, attribute := range given.Attributes {
		values[name] = Value{Expression: string(attribute.Expr.Range().SliceBytes([]byte(s.Variables)))}
	}
	for name, value := range s.VariableFlags {
		values[name] = Value{Expression: value}
	}
	return values, nil
}
