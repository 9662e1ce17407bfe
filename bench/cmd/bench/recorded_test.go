package main

import (
	"bufio"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadStatements(t *testing.T) {
	log := strings.Join([]string{
		"2026-11-22 05:48:12.369 UTC [11] order LOG:  statement: begin",
		"2026-11-22 05:48:12.369 UTC [12] order LOG:  execute stmt_9: SELECT 1",
		"2026-11-22 05:48:12.370 UTC [11] order LOG:  execute stmt_1: -- name: Put :exec",
		"\tINSERT INTO words VALUES ($1, $2, $3)",
		"2026-11-22 05:48:12.370 UTC [11] order DETAIL:  Parameters: $1 = 'it''s, $2 = x', $2 = NULL, $3 = '{1,2}'",
		"2026-11-22 05:48:12.371 UTC [13] order LOG:  statement: begin",
		"2026-11-22 05:48:12.371 UTC [13] order LOG:  execute <unnamed>: SELECT 2",
		"2026-11-22 05:48:12.371 UTC [11] order LOG:  statement: commit",
		"2026-11-22 05:48:12.371 UTC [13] order LOG:  statement: rollback",
		"2026-11-22 05:48:12.372 UTC [9] LOG:  checkpoint starting: time",
		"",
	}, "\n")
	all, err := readStatements(bufio.NewScanner(strings.NewReader(log)))
	require.NoError(t, err)
	first, third := "it's, $2 = x", "{1,2}"
	require.Equal(t, []transaction{
		{{text: "SELECT 1"}},
		{{text: "-- name: Put :exec\nINSERT INTO words VALUES ($1, $2, $3)", parameters: []*string{&first, nil, &third}}},
	}, all)
	require.True(t, all[1].mentions("{1,"))
	require.False(t, all[0].mentions("{1,"))
}

func TestExpression(t *testing.T) {
	vary := []varying{
		{regexp.MustCompile(`ord_\d+`), func(string) string { return "'ord_' || :n" }},
		{regexp.MustCompile(`\b17\b`), func(found string) string { return ":display * " + found }},
	}
	for value, want := range map[string]string{
		"plain":          "'plain'",
		"it's":           "'it''s'",
		"12:30":          "'12:30'",
		"order:ord_99":   "'order:' || 'ord_' || :n",
		"{ord_1,ord_2}":  "'{' || 'ord_' || :n || ',' || 'ord_' || :n || '}'",
		"wallet:org:EUR": "'wallet' || chr(58) || 'org' || chr(58) || 'EUR'",
		"{17,170}":       "'{' || :display * 17 || ',170}'",
	} {
		require.Equal(t, want, expression(value, vary), value)
	}
}
