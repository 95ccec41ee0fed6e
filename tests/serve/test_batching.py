"""Tests of dynamic batching."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from serving import FakePredictor, as_json, client_of, encoded, metric, post_form, wait_for


def test_waiting_queries_are_predicted_together() -> None:
    """Six requests on three images, two images per call; a phrase that fails affects no other request."""
    predictor, images = (
        FakePredictor(released=False),
        [f'epmvg_images_total{{cached="{key}"}}' for key in ("yes", "no")],
    )
    with client_of(predictor, batch_images=2) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(post_form, client, encoded(), ["first"])
        assert predictor.called.wait(30)
        others = []
        for color, phrase in (("teal", "a"), ("navy", "b"), ("teal", "c"), ("gold", "unreadable"), ("gold", "d")):
            others.append(pool.submit(post_form, client, encoded(color), [phrase, "shared"]))
            wait_for(lambda: sum(metric(client, name) for name in images) > len(others))
        predictor.release.set()
        assert first.result().status_code == 200
        responses = [future.result() for future in others]
        assert [response.status_code for response in responses] == [200, 200, 200, 422, 200]
        assert [each["phrase"] for each in responses[2].json()["results"]] == ["c", "shared"]
        assert responses[3].json() == {"error": "The phrase 'unreadable' cannot be predicted."}
        assert predictor.calls[1] == [["a", "shared"], ["b", "shared"], ["c", "shared"]]
        assert metric(client, "epmvg_batch_size_count") == 3
        assert metric(client, "epmvg_batch_size_sum") == 6
        assert metric(client, "epmvg_images_in_progress") == 0


def test_each_query_of_a_batch_gets_its_own_number_of_candidates() -> None:
    predictor = FakePredictor(released=False)
    with client_of(predictor) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(post_form, client, encoded(), ["first"])
        assert predictor.called.wait(30)
        others = []
        for top_k in (1, 4, 2):
            query = as_json(encoded(), ["it"]) | {"top_k": top_k}
            others.append(pool.submit(client.post, "/v1/ground", json=query))
        wait_for(lambda: metric(client, "epmvg_images_in_progress") == 4)
        predictor.release.set()
        assert first.result().status_code == 200
        counts = [len(future.result().json()["results"][0]["candidates"]) for future in others]
        assert counts == [0, 4, 2] and len(predictor.calls) == 2
