package jobs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const declared = `
variable "text" {
  type = string
}
variable "number" {
  type = number
}
variable "list" {
  type = list(string)
}
variable "free" {}
job "x" {}
`

func TestRender(t *testing.T) {
	folder := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(folder, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for _, c := range []struct {
		name string
		file File
		want string
		err  string
	}{
		{name: "Nothing", want: ""},
		{
			name: "Types", file: File{Variables: map[string]string{"text": "3", "number": "3", "list": `["a"]`, "free": "true"}},
			want: "free = true\nlist = [\"a\"]\nnumber = 3\ntext = \"3\"\n",
		},
		{
			name: "Quoted", file: File{Variables: map[string]string{"text": "a\"b\\c${d}%{e}\n$x"}},
			want: `text = "a\"b\\c$${d}%%{e}\n$x"` + "\n",
		},
		{name: "Undeclared", file: File{Variables: map[string]string{"other": "1"}, Environ: []string{"NOMAD_VAR_another=2", "PATH=/bin"}}, want: ""},
		{name: "Environment", file: File{Environ: []string{"NOMAD_VAR_text=a=b", "NOMAD_VAR_number=4"}}, want: "number = 4\ntext = \"a=b\"\n"},
		{
			name: "FileBeatsEnvironment", file: File{
				Environ: []string{"NOMAD_VAR_text=env"}, VariableFiles: []string{file("a.hcl", "text = \"one\"\nother = 1"), file("b.hcl", "text = \"two\" # comment")},
			},
			want: "text = \"two\"\n",
		},
		{
			name: "ValuesBeatFile", file: File{Variables: map[string]string{"text": "given"}, VariableFiles: []string{file("c.hcl", `text = "one"`)}},
			want: "text = \"given\"\n",
		},
		{
			name: "NotAnExpression", file: File{Environ: []string{"NOMAD_VAR_number=3 4"}},
			err: "environment variable NOMAD_VAR_number: variable number of job.hcl is of type number",
		},
		{
			name: "NotAValue", file: File{Variables: map[string]string{"number": "many"}},
			err: `variable number of job.hcl is of type number: "many" is not one`,
		},
		{name: "BlockInFile", file: File{VariableFiles: []string{file("d.hcl", "job \"x\" {}")}}, err: "only name = value may stand here"},
		{name: "NoFile", file: File{VariableFiles: []string{filepath.Join(folder, "none")}}, err: "reading variables file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.file.Path = "job.hcl"
			text, err := c.file.render([]byte(declared))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, text)
			// What was quoted must read back as it was.
			body, err := parseHCL([]byte(text), "rendered")
			require.NoError(t, err)
			if given, ok := c.file.Variables["text"]; ok {
				value, diags := body.Attributes["text"].Expr.Value(nil)
				require.False(t, diags.HasErrors(), diags)
				require.Equal(t, given, value.AsString())
			}
		})
	}
	_, err := File{Path: "job.hcl"}.render([]byte(`variable "x" {`))
	require.ErrorContains(t, err, "job.hcl:1")
}

func TestDeclared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "job.hcl")
	require.NoError(t, os.WriteFile(path, []byte(declared), 0o600))
	names, err := File{Path: path}.Declared()
	require.NoError(t, err)
	require.Equal(t, []string{"free", "list", "number", "text"}, names)

	require.NoError(t, os.WriteFile(path, []byte("b = 1\na = 2\n"), 0o600))
	names, err = VariablesIn(path)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, names)
}

func TestLastLines(t *testing.T) {
	text := func(lines [][]byte) (all []string) {
		for _, line := range lines {
			all = append(all, string(line))
		}
		return all
	}
	require.Equal(t, []string{"b", "c"}, text(lastLines([]byte("a\nb\nc\n"), 2, true)))
	require.Equal(t, []string{"a", "b"}, text(lastLines([]byte("a\nb"), 5, true)))
	require.Equal(t, []string{"b"}, text(lastLines([]byte("alf a line\nb\n"), 5, false)))
	require.Empty(t, lastLines(nil, 5, true))
	require.Empty(t, lastLines([]byte("a\n"), 0, true))
}
