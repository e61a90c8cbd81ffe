"""`sluicegate …`"""

import typer

cli = typer.Typer(no_args_is_help=False, add_completion=False)


@cli.callback(invoke_without_command=True)
def serve(host: str | None = None, port: int | None = None) -> None:
    import uvicorn
    from app import config
    from app.main import create_app
    s = config.load(host=host, port=port)
    uvicorn.run(create_app(s), host=s.host, port=s.port, log_config=None, access_log=False)

def main() -> None:
    cli()
