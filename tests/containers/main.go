// What do docker-compose.yml and a Dockerfile say to the programs that read them? `compose FILE` prints the project as
// Compose's own loader understands it, with all profiles; `dockerfile FILE` the stages as BuildKit's own parser does;
// `context FOLDER` the files that .dockerignore leaves. Whatever one of them warns of is an error.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/sirupsen/logrus"
)

// Stage is one FROM and what follows it.
type Stage struct {
	Name         string
	Base         string
	Instructions []Instruction
}

// Instruction is what a stage does; Arguments are as far as the tests need them.
type Instruction struct {
	Name      string
	Shell     bool
	From      string
	Owner     string
	Arguments []string
	Values    map[string]string
}

func compose(path string) (any, error) {
	var warned bytes.Buffer
	logrus.SetOutput(&warned)
	options, err := cli.NewProjectOptions([]string{path}, cli.WithProfiles([]string{"*"}), cli.WithOsEnv)
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err == nil && warned.Len() > 0 {
		err = errors.New(warned.String())
	}
	return project, err
}

func dockerfile(path string) (any, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	var warned []string
	for _, warning := range parsed.Warnings {
		warned = append(warned, warning.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, message string, _ []parser.Range) {
		warned = append(warned, rule+": "+message)
	}})
	found, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		return nil, err
	}
	if len(warned) > 0 {
		return nil, errors.New(strings.Join(warned, "; "))
	}
	stages := []Stage{}
	for _, each := range found {
		stage := Stage{Name: each.Name, Base: each.BaseName}
		for _, command := range each.Commands {
			stage.Instructions = append(stage.Instructions, instruction(command))
		}
		stages = append(stages, stage)
	}
	return stages, nil
}

func instruction(command instructions.Command) Instruction {
	out := Instruction{Name: command.Name(), Values: map[string]string{}}
	switch given := command.(type) {
	case *instructions.RunCommand:
		out.Arguments, out.Shell = given.CmdLine, given.PrependShell
	case *instructions.CmdCommand:
		out.Arguments, out.Shell = given.CmdLine, given.PrependShell
	case *instructions.EntrypointCommand:
		out.Arguments, out.Shell = given.CmdLine, given.PrependShell
	case *instructions.CopyCommand:
		out.From, out.Owner = given.From, given.Chown
		out.Arguments = append(append([]string{}, given.SourcePaths...), given.DestPath)
	case *instructions.WorkdirCommand:
		out.Arguments = []string{given.Path}
	case *instructions.UserCommand:
		out.Arguments = []string{given.User}
	case *instructions.HealthCheckCommand:
		out.Arguments = given.Health.Test
	case *instructions.ExposeCommand:
		out.Arguments = given.Ports
	case *instructions.EnvCommand:
		for _, pair := range given.Env {
			out.Values[pair.Key] = pair.Value
		}
	}
	return out
}

func files(folder string) (any, error) {
	ignored, err := os.Open(filepath.Join(folder, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	defer ignored.Close()
	patterns, err := ignorefile.ReadAll(ignored)
	if err != nil {
		return nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	out := []string{}
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if entry.Name() == ".git" || strings.HasPrefix(entry.Name(), ".venv") {
				return fs.SkipDir
			}
			return nil
		}
		relative, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		excluded, err := matcher.MatchesOrParentMatches(relative)
		if err == nil && !excluded {
			out = append(out, relative)
		}
		return err
	})
	return out, err
}

func main() {
	readers := map[string]func(string) (any, error){"compose": compose, "dockerfile": dockerfile, "context": files}
	if len(os.Args) != 3 || readers[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: containers compose|dockerfile|context PATH")
		os.Exit(2)
	}
	found, err := readers[os.Args[1]](os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
