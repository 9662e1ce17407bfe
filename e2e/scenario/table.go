package scenario

import (
	"fmt"
	"strings"
)

// Table is a table in Markdown whose columns line up, for figures at the end of
// a run.
type Table struct {
	Columns []string
	rows    [][]string
}

// Add adds a row: a cell for each column, and none of them has a line break.
func (t *Table) Add(cells ...string) { t.rows = append(t.rows, cells) }

// String is the table; each of its lines ends.
func (t *Table) String() string {
	widths := make([]int, len(t.Columns))
	for _, row := range append([][]string{t.Columns}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var text strings.Builder
	line := func(cells []string) {
		for i, width := range widths {
			fmt.Fprintf(&text, "| %-*s ", width, cells[i])
		}
		text.WriteString("|\n")
	}
	line(t.Columns)
	rule := make([]string, len(widths))
	for i, width := range widths {
		rule[i] = strings.Repeat("-", width)
	}
	line(rule)
	for _, row := range t.rows {
		line(row)
	}
	return text.String()
}
