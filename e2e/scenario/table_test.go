package scenario

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	table := Table{Columns: []string{"what", "calls"}}
	table.Add("a machine is killed", "3000")
	table.Add("größer", "123456")
	require.Equal(t, strings.TrimLeft(`
| what                | calls  |
| ------------------- | ------ |
| a machine is killed | 3000   |
| größer              | 123456 |
`, "\n"), table.String())
}
