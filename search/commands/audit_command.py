"""`make audit`: prints faults of the text by token position; CLEAN= writes a copy without them."""

from dataclasses import asdict

from results.export import make_words
from results.study.paths import picture_path
from search.options import Options
from search.setup.inputs import check_inputs
from search.terminal.console import Preparing, Terminal, print_wide
from search.terminal.next_steps import Step, plateau_block, say_next
from trainable.errors import UserError


def audit_command(options: Options, terminal: Terminal) -> int:
    """Audit TRAINING_DATA_SOURCE under the model's tokenizer; 0 whatever is found."""
    out = options.clean
    with Preparing(terminal.console) as progress:
        inputs = check_inputs(options, progress=progress)
        files, documents = inputs.files, options.documents
        if out is not None and (documents.kind == "jsonl" or inputs.text.marked_up_files):
            raise UserError("CLEAN cannot rewrite JSON or CSV. Unset it, and fix the lines that the audit names.")
        if out is not None:
            from trainable.text_audit.clean import check_clean

            # Here and not only when it is written, because an audit takes minutes.
            check_clean(files, out, source=options.training_data_source)
        progress("loading torch", 0.0)
        from trainable.model.models import load_tokenizer, separator_id
        from trainable.text_audit.audit import audit
        from trainable.text_audit.clean import write_clean
        from trainable.text_audit.report import plot_audit, render, render_clean, to_json

        tokenizer = load_tokenizer(inputs.model_name, files, documents=documents, progress=progress)
        report = audit(
            files,
            tokenizer,
            documents=documents,
            separator_id=separator_id(inputs.model_name, tokenizer),
            has_tail=not inputs.validation_files,
            token_range=options.range,
            progress=progress,
        )
        cleaned = write_clean(files, report, out) if out else None
    terminal.say(*inputs.source_lines)
    print_wide(terminal.console, render(report))
    path = picture_path(options.training_data_source or files[0], "audit")
    document = {**to_json(report), "picture": terminal.picture(path, lambda path: plot_audit(report, path))}
    if cleaned is not None:
        print_wide(terminal.console, render_clean(cleaned))
        document["cleaned"] = {**asdict(cleaned), "out": str(cleaned.out)}
        kept = {name: options.texts.get(name) for name in ("GPT2_MODEL_NAME", "VALIDATION_DATA_SOURCE", "DOCUMENTS")}
        kept["BLOCK_SIZE"] = plateau_block(inputs.model_name)
        words = make_words({"TRAINING_DATA_SOURCE": str(cleaned.out.absolute()), **kept})
        search = Step(command=f"make search SPACE=plateau {words}", purpose="search on the cleaned text")
        document["next"] = say_next([search], terminal)
    terminal.document(document)
    return 0
