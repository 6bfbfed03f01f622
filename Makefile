# Every target is one command, printed before it runs; `make` alone lists them.
EPS = 2/255,4/255,8/255
SEEDS = 0,1,2
ARCHS = resnet18,resnet50,convnext_tiny,efficientnet_b0
JOBS = $(if $(GPUS),$(words $(subst $(comma), ,$(GPUS))),1)
comma = ,
MODEL = adv
WHAT = preprocess
COMMITS = 1
# Columns that `make exps` shows: the experiment, the parameters, two main metrics of each model.
SECTIONS = data|model|attack|train_clean|attack_eval|train_adv|evaluate
METRICS = clean_accuracy|robust_accuracy_worst
COLUMNS = Experiment|seed|($(SECTIONS))\.|(clean|adv)\.($(METRICS))$$
# Long commands of `make wait` and `make faults`.
WAIT = while dvc queue status | tee .dvc/tmp/queue | grep -Eq "Queued|Running" \
  && ! grep -q "0 active, 0 idle" .dvc/tmp/queue; do sleep 10; done; cat .dvc/tmp/queue
FUZZ = FUZZ_IMAGES=20000 FUZZ_FILES=1000 FUZZ_REQUESTS=10000 \
  python -m pytest tests/fuzz tests/serving/test_server.py

help:    ## show this help
	@grep -E '^[a-z]+: .*##' Makefile | sed 's/: *##/\t/'
repro:   ## bring everything up to date
	dvc repro
test:    ## run the fast tests (slow: python -m pytest -m slow)
	python -m pytest -m "not slow"
ui:      ## MLflow at http://127.0.0.1:5000; README.md links to its table of all runs
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1
report:  ## open the report in the browser
	python -m webbrowser -t "file://$(CURDIR)/data/report.html"
sweep:   ## one experiment per eps: make sweep EPS=0.01,0.02 JOBS=2 (or GPUS=0,1: one on each)
	dvc exp run --queue -S attack.eps=$(EPS) && SWEEP_GPUS=$(GPUS) dvc queue start -j $(JOBS)
seeds:   ## one experiment per seed, likewise: make seeds SEEDS=0,1,2 JOBS=2; then make spread
	dvc exp run --queue -S seed=$(SEEDS) && SWEEP_GPUS=$(GPUS) dvc queue start -j $(JOBS)
archs:   ## one experiment per architecture, likewise: make archs ARCHS=resnet18,resnet50; make exps
	dvc exp run --queue -S model.arch=$(ARCHS) && SWEEP_GPUS=$(GPUS) dvc queue start -j $(JOBS)
wait:    ## wait until all experiments of sweep, seeds and archs have run, or no worker is left
	$(WAIT)
spread:  ## mean and range of the main metrics over the seeds that were run
	dvc exp show --json -n $(COMMITS) | python -m tools.seeds
exps:    ## list experiments with changed parameters and main metrics: make exps COMMITS=5
	dvc exp show -n $(COMMITS) --only-changed --drop '(?!$(COLUMNS))'
bench:   ## make bench WHAT=attacks, convolutions, duplicates, gpu, methods, preprocess, scaling, training
	python -m benchmarks.$(WHAT)
faults:  ## break the pipeline at random, damage every kind of file: hours (docs/reliability.md)
	python -m tests.faults.campaign && python -m tests.faults.environments && $(FUZZ)
tables:  ## write the tables and numbers of README and docs again, from code and metrics
	python -m tools.docs
serve:   ## publish a model as champion and serve it on 127.0.0.1:5001: make serve MODEL=clean
	python -m stages.publish $(MODEL) && python -m stages.serve
clean:   ## remove caches; keeps results, MLflow runs and checkpoints
	rm -rf .cache .hypothesis .pytest_cache .ruff_cache .mypy_cache dvc_plots

.DEFAULT_GOAL = help
.PHONY: help repro test ui report sweep seeds archs wait spread exps bench faults tables serve clean
