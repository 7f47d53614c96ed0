// Package report collects what the scenarios find and prints it as a table.
package report

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Check is one comparison of a scenario.
type Check struct {
	What, Expected, Got string
	OK                  bool
}

// Result is what came of one scenario. Err is why it could not be carried out to its end.
type Result struct {
	Name, About string
	Checks      []Check
	Took        time.Duration
	Err         error
}

// Expect records whether got is what was expected.
func (r *Result) Expect(what, expected, got string) {
	r.Checks = append(r.Checks, Check{what, expected, got, expected == got})
}

// Hold records whether a condition holds; got tells the figures behind it.
func (r *Result) Hold(what, expected, got string, holds bool) {
	r.Checks = append(r.Checks, Check{what, expected, got, holds})
}

// Passed says whether the scenario was carried out and every check held.
func (r *Result) Passed() bool {
	for _, check := range r.Checks {
		if !check.OK {
			return false
		}
	}
	return r.Err == nil && len(r.Checks) > 0
}

// Print writes one scenario with its checks.
func (r *Result) Print(out io.Writer) {
	fmt.Fprintf(out, "%s  %s: %s (%s)\n", word(r.Passed()), r.Name, r.About, r.Took.Round(10*time.Millisecond))
	for _, check := range r.Checks {
		if check.OK {
			fmt.Fprintf(out, "      ok    %s: %s\n", check.What, check.Got)
		} else {
			fmt.Fprintf(out, "      FAIL  %s: expected %s, got %s\n", check.What, check.Expected, check.Got)
		}
	}
	if r.Err != nil {
		fmt.Fprintf(out, "      FAIL  %v\n", r.Err)
	}
}

// Table writes all scenarios as a Markdown table and says whether all passed.
func Table(out io.Writer, results []*Result) bool {
	passed := 0
	fmt.Fprintln(out, "\n| scenario | what | checks | time | result |\n| --- | --- | --- | --- | --- |")
	for _, result := range results {
		held := 0
		for _, check := range result.Checks {
			if check.OK {
				held++
			}
		}
		if result.Passed() {
			passed++
		}
		fmt.Fprintf(out, "| %s | %s | %d of %d | %.1f s | %s |\n", result.Name, result.About, held, len(result.Checks),
			result.Took.Seconds(), strings.TrimSpace(word(result.Passed())))
	}
	fmt.Fprintf(out, "\n%d of %d scenarios passed\n", passed, len(results))
	return passed == len(results)
}

func word(passed bool) string {
	if passed {
		return "ok  "
	}
	return "FAIL"
}
