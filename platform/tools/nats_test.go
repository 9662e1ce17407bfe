package tools

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProgramOf(t *testing.T) {
	for importPath, program := range map[string]string{
		"github.com/nats-io/nats-server/v2":      "nats-server",
		"github.com/hashicorp/consul":            "consul",
		"github.com/golangci/golangci-lint/v2/x": "x",
		"example.com/v2/vault":                   "vault",
		"example.com/tool/vX":                    "vX",
	} {
		require.Equal(t, program, programOf(importPath), importPath)
	}
}
