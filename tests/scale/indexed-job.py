"""Runs the Jobs of a Kubernetes manifest as local processes: indices, tries and the failure policy by exit status.

usage: indexed-job.py MANIFEST FOLDER   (FOLDER is mounted at /data: paths below it are replaced in commands)
Needs PyYAML. Exit status 0 if all Jobs complete.
"""

import os
import subprocess
import sys
import threading

import yaml


class Job:
    """The part of a Job's behaviour that commands can see."""

    def __init__(self, manifest, folder):
        self.name = manifest["metadata"]["name"]
        self.spec = manifest["spec"]
        container = self.spec["template"]["spec"]["containers"][0]
        self.container = container["name"]
        program, *rest = container["command"]
        program = os.environ.get("MONOQUANT", program) if program == "monoquant" else program
        self.command = [program] + [word.replace("/data", folder) for word in rest]
        self.failed = []
        self.is_over = False

    def action(self, status):
        """What the failure policy says of an exit status."""
        for rule in self.spec.get("podFailurePolicy", {}).get("rules", []):
            condition = rule.get("onExitCodes")
            if not condition or condition.get("containerName", self.container) != self.container:
                continue
            if (status in condition["values"]) == (condition["operator"] == "In"):
                return rule["action"]
        return "Count"

    def run_index(self, index):
        """Tries one index until it is done, or has failed for good."""
        most = self.spec.get("backoffLimitPerIndex", self.spec.get("backoffLimit", 6))
        for _ in range(most + 1):
            if self.is_over:
                return
            environment = dict(os.environ, JOB_COMPLETION_INDEX=str(index))
            status = subprocess.run(self.command, env=environment, check=False).returncode
            status = 128 - status if status < 0 else status
            if status == 0:
                return
            print(f"{self.name} {index}: exit status {status}", flush=True)
            if self.action(status) == "FailJob":
                self.is_over = True
                break
        self.failed.append(index)

    def run(self):
        """Runs all indices, as many at once as the manifest says."""
        places = threading.Semaphore(self.spec.get("parallelism", 1))

        def one(index):
            with places:
                self.run_index(index)

        threads = [threading.Thread(target=one, args=(index,)) for index in range(self.spec.get("completions", 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{self.name}: {'failed' if self.failed else 'complete'}", flush=True)


def main():
    """Runs all Jobs of the manifest at once."""
    manifest, folder = sys.argv[1:]
    with open(manifest, encoding="utf-8") as text:
        jobs = [Job(document, folder) for document in yaml.safe_load_all(text) if document["kind"] == "Job"]
    threads = [threading.Thread(target=job.run) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(any(job.failed for job in jobs))


if __name__ == "__main__":
    main()
